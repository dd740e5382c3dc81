"""The page's own script: draws what lies in its JSON, in the colours of the reader's scheme."""

SCRIPT = """
(function () {
  'use strict';
  var figures = JSON.parse(document.getElementById('figures').textContent);
  var dark = window.matchMedia('(prefers-color-scheme: dark)');
  var narrow = window.matchMedia('(max-width: 560px)');
  var nodes = Array.prototype.slice.call(document.querySelectorAll('[data-figure]'));
  var printing = false;

  function scheme() {
    var night = dark.matches && !printing;
    return night ? {ink: '#c9d0d9', line: '#343c47', card: '#191d23'} : {ink: '#333a43', line: '#e3e7ec', card: '#fff'};
  }
  function layout(given) {
    var tone = scheme(), out = JSON.parse(JSON.stringify(given));
    out.paper_bgcolor = out.plot_bgcolor = 'rgba(0,0,0,0)';
    out.font = {color: tone.ink, size: 12, family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'};
    out.hoverlabel = {bgcolor: tone.card, bordercolor: tone.ink, font: {color: tone.ink}, align: 'left'};
    ['xaxis', 'yaxis'].forEach(function (name) {
      out[name] = Object.assign({gridcolor: tone.line, zerolinecolor: tone.line, linecolor: tone.line,
        automargin: true}, out[name]);
      if (narrow.matches && name === 'xaxis') { out[name].nticks = 4; }
    });
    return out;
  }
  var options = {displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false};
  var waiting = nodes.slice(), drawn = [];
  function draw(node) {
    var given = figures[Number(node.getAttribute('data-figure'))];
    waiting.splice(waiting.indexOf(node), 1);
    // One that fails leaves the others to be drawn; the console tells.
    drawn.push(new Promise(function (done) {
      done(Plotly.newPlot(node, given.data, layout(given.layout), options));
    }));
  }
  // What is on the screen first, then a picture at a time, so that the page can be read and scrolled meanwhile.
  function next() {
    if (waiting.length) { draw(waiting[0]); }
    if (waiting.length) { setTimeout(next, 0); return; }
    Promise.all(drawn).then(function () {
      document.documentElement.setAttribute('data-drawn', String(nodes.length));
    });
  }
  function again() {
    nodes.forEach(function (node) {
      if (waiting.indexOf(node) >= 0) { return; }
      var given = figures[Number(node.getAttribute('data-figure'))];
      Plotly.react(node, given.data, layout(given.layout), options);
    });
  }
  dark.addEventListener('change', again);
  narrow.addEventListener('change', again);
  window.addEventListener('beforeprint', function () {
    waiting.slice().forEach(draw); printing = true; again();
    nodes.forEach(function (node) { Plotly.Plots.resize(node); });
  });
  window.addEventListener('afterprint', function () { printing = false; again(); });
  waiting.filter(function (node) {
    return node.getBoundingClientRect().top < window.innerHeight;
  }).forEach(draw);
  setTimeout(next, 0);
}());
"""
