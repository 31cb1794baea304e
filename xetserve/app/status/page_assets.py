"""The fixed parts of the page at /: style, script, and a Content-Security-Policy that allows only
these two.
"""

from base64 import b64encode
from hashlib import sha256
from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #fff; --line: #dde1e7; --ink: #1b2330; --soft: #5b6675;
  --mark: #1769d1; --second: #9a6700; --good: #16793a; --bad: #b3261e;
  --track: #e6e9ee; --fill: #1769d11f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151b; --card: #1a2029; --line: #2c3542; --ink: #e6eaf0; --soft: #97a3b3;
    --mark: #5ba3f5; --second: #d9a441; --good: #56c07b; --bad: #f2756b;
    --track: #2a323e; --fill: #5ba3f52b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
}
main, footer { max-width: 64rem; margin: 0 auto; padding: 0 1rem; }
header {
  display: flex; flex-wrap: wrap; align-items: baseline; gap: .25rem .75rem; margin: 1.5rem 0 1rem;
}
h1 { font-size: 1.35rem; margin: 0; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
h3 { font-size: .9rem; margin: 1rem 0 .25rem; color: var(--soft); font-weight: 600; }
p { margin: .4rem 0; }
.soft { color: var(--soft); }
.state {
  font-size: .8rem; padding: .05rem .55rem; border-radius: 1rem; border: 1px solid currentColor;
  color: var(--good);
}
.draining { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; }
.card, .usage {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .8rem 1rem; min-width: 0;
}
.wide { grid-column: span 2; grid-row: span 2; display: flex; flex-direction: column; }
.all { grid-column: 1 / -1; }
.big { font-size: 1.5rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card .soft { font-size: .85rem; }
.card .soft, td { font-variant-numeric: tabular-nums; }
.label { font-size: .8rem; color: var(--soft); }
.key {
  display: inline-block; width: .8rem; height: .2rem; margin-right: .35rem;
  vertical-align: middle; background: var(--mark);
}
.key.second { background: var(--second); }
svg { display: block; width: 100%; height: 7rem; flex: 1; margin: .4rem 0; }
svg .area { fill: var(--fill); }
svg .line { fill: none; stroke: var(--mark); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg .second { stroke: var(--second); stroke-dasharray: 3 2; }
svg .base { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke; }
progress {
  -webkit-appearance: none; appearance: none; display: block; width: 100%; height: .45rem;
  border: 0; border-radius: .3rem; overflow: hidden; background: var(--track); margin: .35rem 0;
}
progress::-webkit-progress-bar { background: var(--track); }
progress::-webkit-progress-value { background: var(--mark); }
progress::-moz-progress-bar { background: var(--mark); }
progress.full::-webkit-progress-value { background: var(--bad); }
progress.full::-moz-progress-bar { background: var(--bad); }
.stream { padding: .6rem 0; border-top: 1px solid var(--line); }
.stream:first-of-type { border-top: 0; padding-top: .1rem; }
.stream:last-child { padding-bottom: 0; }
.row {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem;
  font-variant-numeric: tabular-nums;
}
.top { flex-wrap: nowrap; }
.top span:last-child { white-space: nowrap; }
.name { font-weight: 600; overflow-wrap: anywhere; min-width: 0; }
.bad { color: var(--bad); }
pre {
  overflow-x: auto; margin: .25rem 0; padding: .55rem .75rem; border: 1px solid var(--line);
  border-radius: .4rem; background: var(--ground); font-size: .82rem; line-height: 1.45;
}
table { border-collapse: collapse; font-size: .85rem; }
td { padding: .15rem 1.25rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: 0; }
input, button {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; padding: .25rem .6rem; min-width: 0;
}
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
footer { margin: 1rem auto 2rem; font-size: .85rem; }
.usage { margin: .75rem 0; }
.stale .cards { opacity: .5; }
@media (max-width: 44rem) {
  .cards { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
  .card { padding: .65rem .75rem; }
  .big { font-size: 1.2rem; }
  svg { height: 5rem; }
  footer form { width: 100%; }
  footer input { flex: 1; }
}
"""

SCRIPT: Final = """
"use strict";
const live = document.getElementById("live");
async function renew() {
  if (!document.hidden) {
    try {
      const answer = await fetch("./", {
        headers: { accept: "text/html" }, cache: "no-store", signal: AbortSignal.timeout(5000),
      });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("live");
      live.classList.toggle("stale", !fresh);
      if (fresh) live.replaceChildren(...fresh.childNodes);
    } catch {
      live.classList.add("stale");
    }
  }
  setTimeout(renew, 1000);
}
setTimeout(renew, 1000);
"""


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()


POLICY: Final = (
    "default-src 'none'; "
    f"style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
