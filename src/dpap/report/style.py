"""The style sheet and the script of a report. The page is complete without the script, which only shows values."""

STYLE = """
:root{color-scheme:light dark;--page:#faf9f6;--card:#fff;--ink:#1d2326;--soft:#5d676c;--faint:#dedcd4;--hair:#eceae4;
--run:#0c7a70;--control:#7d8488;--test:#a8632a;--gone:#e4e1d8;--window:#0c7a7010;--note:#f3efe2}
@media(prefers-color-scheme:dark){:root{--page:#121517;--card:#191d20;--ink:#e7e8e4;--soft:#9ea7aa;--faint:#343b3f;
--hair:#262c2f;--run:#4fbfae;--control:#949c9f;--test:#dd9d63;--gone:#30373a;--window:#4fbfae14;--note:#25241c}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Inter,Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main,header,footer{max-width:1164px;margin:0 auto;padding:0 32px}
header{padding-top:44px}
.kind{font-size:13px;letter-spacing:.08em;text-transform:uppercase;color:var(--soft);margin:0}
h1{font-size:38px;line-height:1.15;letter-spacing:-.02em;font-weight:650;margin:6px 0 8px}
h2{font-size:23px;letter-spacing:-.012em;font-weight:640;margin:0 0 4px;line-height:1.25}
h3{font-size:15px;font-weight:620;margin:0;line-height:1.3}
.what{color:var(--soft);margin:0}
.lead{font-size:20px;line-height:1.5;max-width:46em;margin:22px 0 0}
.lead b{font-weight:650}
section{padding-top:56px;scroll-margin-top:0}
section>p{max-width:50em;color:var(--soft);margin:4px 0 0}
section>h3{margin-top:32px}
nav{display:flex;flex-wrap:wrap;gap:4px 20px;margin-top:22px;padding-top:12px;border-top:1px solid var(--faint);
font-size:14px}
a{color:var(--soft);text-decoration:none}
a:hover,a:focus-visible{color:var(--run);text-decoration:underline;text-underline-offset:3px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin:28px 0 0}
.tile{background:var(--card);border:1px solid var(--hair);border-radius:10px;padding:14px 14px 16px;min-width:0;
display:flex;flex-direction:column}
.tile dt{font-size:13px;color:var(--soft)}
.tile dd{margin:0;font-size:12.5px;color:var(--soft);line-height:1.45}
.tile .big{font-size:25px;line-height:1.35;color:var(--ink);font-weight:630;letter-spacing:-.02em;white-space:nowrap}
.tile b{color:var(--run);font-weight:600}
.tile .meter{height:5px;border-radius:3px;background:var(--gone);margin-top:auto;overflow:hidden}
.tile .beside{padding-bottom:10px}
.meter i{display:block;height:100%;min-width:1px;border-radius:3px;background:var(--run)}
.notices{list-style:none;margin:22px 0 0;padding:0;font-size:14.5px;display:grid;gap:8px}
.notices li{border-left:3px solid var(--test);background:var(--note);padding:8px 14px;border-radius:0 6px 6px 0}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px;margin-top:22px}
figure{margin:0;background:var(--card);border:1px solid var(--hair);border-radius:12px;padding:16px 18px 14px;
min-width:0}
figure.full{margin-top:22px}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;align-items:baseline}
.at{font-size:12.5px;color:var(--soft);white-space:nowrap}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 18px;margin:6px 0 10px;padding:0;font-size:13px;
color:var(--soft);align-items:center}
.legend li{display:flex;gap:7px;align-items:center}
.legend b{color:var(--ink);font-weight:600}
.chart .legend{min-height:42px;align-content:flex-start}
.note{font-size:12.5px;line-height:1.45;color:var(--soft);margin:10px 0 0}
svg{display:block;width:100%;height:auto}
.narrow{display:none}
svg text{font-size:12px;fill:var(--ink)}
svg .tick,svg .hint{fill:var(--soft);font-size:11.5px}
svg .hint{font-size:11px}
svg .name{font-weight:600;font-size:12.5px;fill:var(--ink)}
svg .figure{font-size:12.5px}
line.grid{stroke:var(--hair)}
.window{fill:var(--window)}
.cross{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3;opacity:0}
.curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.run{stroke:var(--run);background:var(--run)}
.control{stroke:var(--control);background:var(--control)}
.test{stroke:var(--test);background:var(--test)}
.thin{stroke-width:1.25;opacity:.62}
.dashed{stroke-dasharray:5 4}
.dot{stroke:var(--card);stroke-width:1.5}
.dot.run{fill:var(--run)}.dot.control{fill:var(--control)}.dot.test{fill:var(--test)}
.key{flex:none;width:18px;height:2.5px;border-radius:2px}
.key.thin{height:1.5px}
.key.dashed{background:repeating-linear-gradient(90deg,var(--key) 0 5px,transparent 5px 8px)}
.key.run{--key:var(--run)}.key.control{--key:var(--control)}.key.test{--key:var(--test)}
.key.point{width:8px;height:8px;border-radius:50%}
.key.block{width:12px;height:12px;border-radius:3px}
.track{fill:var(--hair)}
.bar{stroke:none}
.bar.run,.bar.b1{fill:var(--run)}.bar.control{fill:var(--control)}.bar.b2{fill:var(--run);opacity:.62}
.bar.b3{fill:var(--test);opacity:.8}.bar.other{fill:var(--control);opacity:.55}
.key.b1{background:var(--run)}.key.b2{background:var(--run);opacity:.62}.key.b3{background:var(--test);opacity:.8}
.key.other{background:var(--control);opacity:.55}
.key.alive{background:var(--run)}.key.gone{background:var(--gone)}
.key.ribbon-key{width:28px;background:linear-gradient(90deg,var(--gone),var(--run))}
.key.empty{background:var(--page);border:1px solid var(--faint)}
.units.gone,.square.gone{fill:var(--gone)}.units.alive,.square.alive{fill:var(--run)}
.ribbon.gone{fill:var(--gone);opacity:.42}.ribbon.alive{fill:var(--run)}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:20px;margin-top:14px}
.frame{position:relative;margin-top:10px;border:1px solid var(--hair);border-radius:4px;overflow:hidden}
.map{display:block;width:100%;height:150px;image-rendering:pixelated;background:var(--page)}
.mark{position:absolute;top:0;bottom:0;border-left:1px dashed var(--ink);opacity:.7}
.under{display:flex;justify-content:space-between;gap:0 10px;
font-size:12px;color:var(--soft);margin-top:5px}
.under+.note{margin-top:2px}
.step-bars{display:flex;gap:2px;height:110px;margin-top:10px;border-bottom:1px solid var(--faint)}
.step-bars span{flex:1 1 0;min-width:0;display:flex;align-items:flex-end;justify-content:center;gap:1px}
.step-bars i{flex:1 1 0;max-width:16px;min-width:0;border-radius:1px 1px 0 0}
.step-bars.many{gap:0}.step-bars.many span{position:relative}
.step-bars.many i{position:absolute;left:0;right:0;bottom:0;max-width:none;border-radius:0;opacity:.7}
.step-bars .dead,.dead-step{background:repeating-linear-gradient(135deg,var(--faint) 0 2px,transparent 2px 6px)}
.film{display:flex;flex-wrap:wrap;gap:8px;margin-top:10px}
.film span{display:block;width:76px}
.film img{display:block;width:100%;image-rendering:pixelated;background:var(--page);border:1px solid var(--hair)}
.film small{text-align:center}
.key.on{background:rgb(24,128,120)}.key.off{background:rgb(214,158,70)}
#samples figure.full{margin-top:14px}#samples>.legend{margin:14px 0 0}
.maps+h3,figure+h3{margin-top:32px}
.ramp{width:120px;height:10px;border-radius:3px}
.survival-key{margin-top:16px}
table{width:100%;border-collapse:collapse;font-size:14px;line-height:1.42;margin-top:16px}
th{text-align:left;font-weight:600;vertical-align:baseline;padding:9px 12px 9px 0}
thead th{font-size:12.5px;overflow-wrap:normal;font-weight:500;color:var(--soft);padding-top:4px;padding-bottom:6px}
td{padding:9px 12px 9px 0;vertical-align:baseline}
tr{border-bottom:1px solid var(--hair)}
thead tr{border-bottom-color:var(--faint)}
.n{text-align:right;white-space:nowrap;padding-right:22px}
.metrics tbody th{width:200px}.metrics.two tbody th{width:330px}
.meaning{color:var(--soft);font-size:13px;max-width:38em}
small{display:block;font-size:12px;font-weight:400;color:var(--soft)}
.pairs th{font-weight:500;color:var(--soft);width:38%}
details{margin-top:14px;border-top:1px solid var(--faint);padding-top:12px}
summary{cursor:pointer;font-weight:600;font-size:15px}
summary:hover{color:var(--run)}
pre{background:var(--card);border:1px solid var(--hair);border-radius:10px;padding:14px 16px;margin:14px 0 0;
font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre-wrap}
.list{margin:10px 0 0;padding-left:20px;font-size:14px}
footer{padding-top:56px;padding-bottom:44px;color:var(--soft);font-size:13px}
@media(max-width:1100px){.tiles{grid-template-columns:repeat(3,1fr)}}
@media(max-width:899px){
main,header,footer{padding-left:16px;padding-right:16px}
header{padding-top:28px}
h1{font-size:29px}.lead{font-size:17.5px}
section{padding-top:44px}
.tiles{grid-template-columns:repeat(2,1fr);gap:10px}
.tile{padding:11px 12px 13px}.tile .big{font-size:22px}
.grid{grid-template-columns:minmax(0,1fr);gap:14px}
figure{padding:13px 11px 12px}
.wide{display:none}.narrow{display:block;max-width:560px;margin:0 auto}
.metrics,.metrics tbody,.metrics thead{display:block}
.metrics thead .meaning,.metrics thead th:last-child{display:none}
.metrics{font-size:13px}
.metrics tr{display:grid;grid-template-columns:minmax(0,1fr) 60px 60px 86px;column-gap:10px;padding:8px 0}
.metrics.alone tr,.metrics.two tr{grid-template-columns:minmax(0,1fr) max-content}
.metrics th,.metrics td{padding:0}
.metrics tbody th{width:auto}
.metrics td.meaning{grid-column:1/-1;font-size:12.5px;padding-top:2px}
.layers{font-size:12.5px}.layers th,.layers td{padding-right:0;padding-left:8px}.layers th:first-child{padding-left:0}
.layers small{font-size:11px}
}
@media print{body{background:#fff}section,figure{break-inside:avoid}nav{display:none}}
"""

SCRIPT = """
for (const figure of document.querySelectorAll('figure[data-series]')) {
  const series = JSON.parse(figure.dataset.series), values = [...figure.querySelectorAll('.value')];
  const last = values.map(v => v.textContent), at = figure.querySelector('.at');
  for (const svg of figure.querySelectorAll('svg')) {
    const {left, right, end} = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, +v]));
    const cross = svg.querySelector('.cross');
    const show = event => {
      const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      const place = Math.min(Math.max((x - left) / (right - left), 0), 1) * end;
      cross.setAttribute('transform', `translate(${place / end * (right - left)})`);
      cross.style.opacity = 1;
      at.textContent = figure.dataset.axis + ' ' + (+place.toPrecision(3));
      series.forEach((s, k) => {
        let best = -1;
        s.x.forEach((p, j) => {
          if (s.hold ? p <= place + 1e-9 : best < 0 || Math.abs(p - place) < Math.abs(s.x[best] - place)) best = j;
        });
        values[k].textContent = best < 0 ? s.y[0] : s.y[best];
      });
    };
    svg.addEventListener('pointermove', show);
    svg.addEventListener('pointerdown', show);
    svg.addEventListener('pointerleave', () => {
      cross.style.opacity = 0;
      at.textContent = '';
      last.forEach((text, k) => values[k].textContent = text);
    });
  }
}
"""
