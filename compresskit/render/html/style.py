"""How the page looks: light and dark, wide and narrow, on screen and on paper."""

from __future__ import annotations

from dataclasses import dataclass

_LIGHT = (
    "--bg:#f6f7f9;--card:#fff;--ink:#1a1d21;--soft:#5b6470;--line:#dfe3e8;--pass:#00704f;--fail:#b34700;--open:#7a5200;"
    "--accent:#005c91;--tint:12%;"
    "--c0:#7a818c;--c1:#0072b2;--c2:#d55e00;--c3:#009e73;--c4:#cc79a7;--c5:#d18f00;--c6:#56b4e9"
)
"""Grey for the original, then Okabe and Ito's colours, which the colour-blind tell apart, their yellow darker."""
_DARK = (
    "--bg:#111418;--card:#191d23;--ink:#e7eaee;--soft:#a3acb8;--line:#2e353e;--pass:#35c79a;--fail:#ff8a4c;"
    "--open:#f0b83d;--accent:#6cc1f2;--tint:16%;"
    "--c0:#9aa3af;--c1:#4aa3e0;--c2:#ff8a4c;--c3:#35c79a;--c4:#e29cc4;--c5:#f0b83d;--c6:#9ad7fa"
)


@dataclass(frozen=True)
class Look:
    """How a series differs from the others: the place of its colour and shape, the dashes of its line in pixels."""

    place: int
    dash: str


_DASHES = ("", "9 4", "2 3", "9 3 2 3", "14 4", "14 3 2 3", "5 5")


def looks(index: int) -> Look:
    """The look of a model; what goes past the last starts over behind the original's."""
    count = len(_DASHES)
    place = index if index < count else 1 + (index - 1) % (count - 1)
    return Look(place, _DASHES[place])


_COLOURS = "".join(f".c{n}{{fill:var(--c{n});--own:var(--c{n})}}" for n in range(len(_DASHES)))

CSS = (
    f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root:not([data-paper]){{{_DARK}}}}}
{_COLOURS}"""
    + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.6rem 1.25rem 4rem}
h1{font-size:1.35rem;line-height:1.3;margin:0;overflow-wrap:anywhere;font-weight:650}
h2{font-size:1.1rem;margin:2.2rem 0 .7rem}
h3{font-size:.95rem;margin:0;font-weight:600;overflow-wrap:anywhere}
p{margin:.25rem 0}
.soft,figcaption p{color:var(--soft);font-size:.875rem;overflow-wrap:anywhere}
code{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.answer{display:flex;flex-wrap:wrap;align-items:center;gap:.5rem 1rem;margin-bottom:.4rem}
.badge{padding:.15rem .8rem;border-radius:99px;font-weight:700;letter-spacing:.04em;color:var(--own);
border:2px solid currentColor;background:color-mix(in srgb,var(--own) var(--tint),transparent);white-space:nowrap}
.PASS,.passed{--own:var(--pass)}.FAIL,.failed{--own:var(--fail)}.MEASURED{--own:var(--accent)}
.INCONCLUSIVE,.UNVERIFIED,.inconclusive{--own:var(--open)}
.tiles{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(0,1fr);gap:.8rem;margin:1rem 0 .8rem}
.tile,.card,figure,.fold{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.9rem 1rem;
margin:0;min-width:0}
.tile h3{color:var(--soft);font-size:.8125rem;font-weight:500}
.tile b{display:block;font-size:1.7rem;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
.tile p{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere;margin:0}
.gates{list-style:none;margin:0;padding:0;display:grid;gap:.35rem}
.gates li{display:grid;grid-template-columns:1.2rem 1fr;gap:.4rem;padding:.45rem .8rem;border-radius:8px;
overflow-wrap:anywhere}
.gates li>b:first-child{color:var(--own)}
.gates .first{background:color-mix(in srgb,var(--own) var(--tint),var(--card));border:1px solid var(--own)}
.gates small{display:block;color:var(--soft);font-size:.85rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:.8rem}
.card+.grid,.grid+.card,figure+.card{margin-top:.8rem}
.plot{width:100%;margin-top:.5rem}
.plot>svg{display:block;width:100%}
svg{overflow:visible;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text{fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round;
font-variant-numeric:tabular-nums}
svg .x{text-anchor:middle;fill:var(--soft)}svg .y,svg .v{text-anchor:end}svg .y,svg .t{fill:var(--soft)}
.g{stroke:var(--line);stroke-width:1}.w{stroke:var(--soft);stroke-width:1.6}.d{stroke:var(--soft);stroke-width:1.5;
stroke-dasharray:3 3}
.l{fill:none;stroke:var(--own);stroke-width:2.2;vector-effect:non-scaling-stroke}
.front{--own:var(--soft)}
.m path{stroke:var(--card);stroke-width:1}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem .9rem;padding:0;margin:.5rem 0 0;font-size:.8125rem}
.legend li{overflow-wrap:anywhere}.legend svg{vertical-align:-2px}
.tall{max-height:560px;overflow:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:anywhere}
th:first-child,td:first-child{position:sticky;left:0;background:var(--card)}
th{font-weight:600;color:var(--soft);white-space:nowrap}
.n{text-align:right;white-space:nowrap;overflow-wrap:normal}
th:last-child,td:last-child{padding-right:0}
tr:last-child td{border-bottom:0}
details{margin-top:.5rem;font-size:.875rem}
summary{cursor:pointer;color:var(--soft);overflow-wrap:anywhere}
details details .scroll,figure .scroll{max-height:360px;overflow:auto;margin-top:.4rem}
.fold{margin-top:.6rem;padding:0 1rem}
.fold>summary{padding:.7rem 0;margin:0 -1rem;padding:.7rem 1rem}
.fold>summary h2{display:inline;font-size:1rem;margin:0;color:var(--ink)}
.fold[open]{padding-bottom:.9rem}
.fold figure{border:0;padding:0 0 .8rem}
ul,ol{margin:.3rem 0;padding-left:1.3rem}li{overflow-wrap:anywhere}
.steps>li{margin-bottom:.7rem}
footer{margin-top:2rem;color:var(--soft);font-size:.8125rem}
@media (max-width:560px){main{padding:1rem .7rem 3rem}h1{font-size:1.15rem}
.tiles{gap:.4rem}.tile{padding:.55rem .6rem}.tile b{font-size:1.2rem}.tile h3,.tile p{font-size:.75rem;line-height:1.35}
.card,figure{padding:.7rem .75rem}.fold{padding:0 .75rem}.gates li{padding:.4rem .6rem}
table{font-size:.8125rem}th,td{padding-right:.45rem}}
@media print{main{max-width:none;padding:0}figure,.tile,tr,.gates li{break-inside:avoid}h2{break-after:avoid}
.tall,details .scroll{max-height:none!important;overflow:visible}details:not([open]){display:none}}
"""
)
