"""How the page looks: light and dark, wide and narrow, on screen and on paper."""

PALETTE = ("#7a818c", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Grey for the baseline, then Okabe and Ito's colours, which the colour-blind tell apart."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon")
PATTERNS = ("", "/", "x", "-", "|", "+", ".")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1a1d21;--soft:#5b6470;--line:#dfe3e8;--head:#f0f2f5;
--pass:#00704f;--fail:#b34700;--open:#7a5200;--accent:#005c91}
@media (prefers-color-scheme:dark){:root{--bg:#111418;--card:#191d23;--ink:#e7eaee;--soft:#a3acb8;--line:#2e353e;
--head:#222831;--pass:#35c79a;--fail:#ff8a4c;--open:#f0b83d;--accent:#6cc1f2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.5rem;line-height:1.25;margin:.6rem 0 .35rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.4rem 0 .8rem}
h3{font-size:.95rem;margin:0;font-weight:600;overflow-wrap:anywhere}
p{margin:.25rem 0}
.soft,figcaption p{color:var(--soft);font-size:.875rem}
code,pre{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.badge{display:inline-block;padding:.2rem .8rem;border-radius:99px;font-weight:700;letter-spacing:.04em;
border:2px solid currentColor}
.PASS,.passed{color:var(--pass)}.FAIL,.failed{color:var(--fail)}.INCONCLUSIVE,.UNVERIFIED,.inconclusive{color:var(--open)}
.MEASURED{color:var(--accent)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:.8rem;margin:1.2rem 0}
.tile,.card,figure{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;margin:0;
min-width:0}
.tile b{display:block;font-size:1.6rem;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:.9rem}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.plot{width:100%;margin-top:.4rem}
.tall{max-height:520px;overflow:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.4rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);white-space:nowrap}
th:first-child,td:first-child,table.text th,table.text td{text-align:left;overflow-wrap:anywhere}
td:first-child{min-width:6.5rem}
tr:last-child td{border-bottom:0}
details{margin-top:.4rem;font-size:.875rem}
summary{cursor:pointer;color:var(--soft);overflow-wrap:anywhere}
details .scroll{max-height:360px;overflow:auto;margin-top:.4rem}
pre{white-space:pre-wrap;margin:.4rem 0;max-height:420px;overflow:auto}
ul{margin:.3rem 0;padding-left:1.2rem}li{overflow-wrap:anywhere}
footer{margin-top:3rem;color:var(--soft);font-size:.8125rem}
@media (max-width:560px){main{padding:1.1rem .8rem 3rem}h1{font-size:1.25rem}th,td{padding:.35rem .5rem}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--head:#eee;--pass:#00704f;--fail:#b34700;
--open:#7a5200;--accent:#005c91}
main{max-width:none;padding:0}figure,.tile,tr{break-inside:avoid}h2{break-after:avoid}
.tall,pre,details .scroll{max-height:none;overflow:visible}figure.long{break-inside:auto}
details:not([open]){display:none}}
"""

NOSCRIPT = "<noscript><style>.plot{display:none}</style></noscript>"
"""Without scripts there are no pictures; the tables behind them are there all the same."""
