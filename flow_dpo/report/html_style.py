"""How does the page look, in light and dark, on a desk and on a phone?

One style sheet, in the page itself; the page's policy names its hash, so that no other style can enter. Invariant: no
address in it, and nothing that needs a script.
"""

from __future__ import annotations

from flow_dpo.report import svg_theme

STYLE = (
    ":root{color-scheme:light dark;--page:#ffffff;--soft:#f4f6f8;--bad:#fdeceb;" + svg_theme.variables(0) + "}\n"
    "@media (prefers-color-scheme:dark){:root{--page:#15181c;--soft:#1f242a;--bad:#3b1f1e;"
    + svg_theme.variables(1)
    + "}}\n"
    """*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:1.5rem 0 1rem}
h2{font-size:1.4rem;line-height:1.3;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--grid)}
h3{font-size:1.12rem;margin:2.25rem 0 .5rem}
h1,h2,h3,p,li,summary,figcaption,caption,td,th{overflow-wrap:anywhere}
p,ul.plain{max-width:46rem}
a{color:var(--blue)}
nav ol{columns:2 16rem;padding-left:1.4rem;margin:.5rem 0 0;font-size:.95rem}
nav li{break-inside:avoid}
nav ol ol{columns:auto;font-size:.95em;margin:0;padding-left:1.2rem}
.findings li{margin:.35rem 0}
figure{margin:1.25rem 0 1.75rem;max-width:33rem}
figure svg{display:block;width:100%;height:auto;font-family:inherit}
figure .title{font-weight:600;margin:0 0 .5rem}
figcaption{color:var(--grey);font-size:.9rem;margin-top:.5rem}
.scroll{overflow-x:auto;margin:1.25rem 0;border:1px solid var(--grid);border-radius:6px;
width:fit-content;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--blue)}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
.caption{font-weight:600;margin:1.25rem 0 -.75rem}
th,td{padding:.4rem .75rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--grid);max-width:24rem}
td{overflow-wrap:normal;white-space:nowrap}
tr:last-child td{border-bottom:0}
th{background:var(--soft);font-weight:600;overflow-wrap:normal;vertical-align:bottom}
.w{text-align:left}
td.w{min-width:7rem;overflow-wrap:break-word;white-space:normal}
td.w:first-child{min-width:8.5rem}
pre{background:var(--soft);border-radius:6px;padding:.75rem 1rem;overflow-x:auto;
font:.85rem/1.5 ui-monospace,monospace;margin:1rem 0}
details{margin:.75rem 0}
summary{cursor:pointer}
details.fold>summary{font-weight:600}
.beside{margin:1.5rem 0 2.25rem}
.beside .grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:.75rem}
.question{background:var(--soft);border-radius:6px;padding:.75rem 1rem;margin:.75rem 0}
.passage{border:1px solid var(--grid);border-radius:6px;padding:.75rem}
.passage h4{margin:0;font-size:.95rem;overflow-wrap:anywhere}
.verdict{font-size:.88rem;margin:.1rem 0 .5rem;font-weight:600;color:var(--grey)}
.correct{color:var(--green)}.wrong{color:var(--red)}
.said{font:.85rem/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.line{padding:0 .35rem;border-left:3px solid transparent;min-height:1.5em}
.line.bad{background:var(--bad);border-left-color:var(--red)}
.line .why{display:block;color:var(--red);font-size:.8rem}
.line.old{color:var(--grey);text-decoration:line-through}
ol.play{list-style:none;margin:.5rem 0;padding:0 0 0 .75rem;border-left:2px solid var(--grid)}
ol.play>li{margin:.5rem 0}
.who{font-weight:600;font-size:.88rem}
.note{color:var(--grey);font-size:.82rem}
.tag{font-size:.78rem;font-weight:600;border:1px solid;border-radius:4px;padding:0 .35rem;white-space:nowrap}
.tag.chosen{color:var(--green)}.tag.rejected{color:var(--red)}.tag.both{color:var(--purple)}
.instead{margin:.35rem 0 .35rem .25rem}
.instead>summary{font-size:.88rem}
.end{font-weight:600;font-size:.88rem;margin:.35rem 0 .5rem}
@media (max-width:40rem){main{padding:.5rem 1rem 3rem}h1{font-size:1.4rem}h2{font-size:1.22rem}
ol.play{padding-left:.5rem}}
@media print{.scroll{overflow:visible}}
"""
)
