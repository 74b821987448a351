"""A page to vote on blindly: which of two cascades people prefer.

As in the paper's section 4.3, people see the images of two models for one prompt side by side and
answer two questions, each with the left one, the right one, or no preference. The page does not
know which model is which: sides and order are drawn at random, and the key stays in another file.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import UserError
from imagen_jax.eval import page
from imagen_jax.eval.images import list_images, read_image, side_of
from imagen_jax.eval.votes import QUESTIONS
from imagen_jax.files import (
    as_json,
    atomic_path,
    fingerprint,
    output_folder,
    parse_json,
    read_json,
)
from imagen_jax.paths import as_path

PAGE, KEY = "for-voters/vote.html", "key.json"
"""The page lies in a folder of its own, which can be given away as it is."""
SHOWN_SIDE = 512


def write_vote(a: str | Path, b: str | Path, output: str | Path, seed: int | None = None) -> int:
    """Write for-voters/vote.html, to be given to people, and key.json, to be kept from them.

    Args:
      a, b: directories that `imagen evaluate prompts` wrote, of the same prompts.
      output: directory.
      seed: seed of sides and order, kept in key.json; who knows it knows the sides. None draws one
        that nobody can guess.

    Returns:
      The number of pairs.

    Raises:
      UserError: a directory has no finished job; jobs of different prompts, numbers of images or
        sizes; output holds another vote, whose key would be lost.
    """
    output = output_folder(output)
    if (output / KEY).exists():
        raise UserError(
            f"{output} holds another vote, and its key is not overwritten; choose another folder"
        )
    prompts, records = _read_jobs(as_path(a), as_path(b))
    count = records[0]["scores"]["count"]
    folders = [as_path(run) / "images" for run in (a, b)]
    files = [list_images(folder) for folder in folders]
    sides = [side_of(of[0]) for of in files]
    if sides[0] != sides[1] or not len(files[0]) == len(files[1]) == count:
        raise UserError(
            f"{a} has {len(files[0])} images of {sides[0]} pixels, {b} {len(files[1])} of "
            f"{sides[1]}; a fair comparison needs as many of the same size"
        )
    if records[0]["job"] == records[1]["job"]:
        raise UserError(f"{a} and {b} hold the same images")
    seed = secrets.randbits(128) if seed is None else seed
    rng = np.random.default_rng(seed)
    order, flipped = rng.permutation(count), rng.random(count) < 0.5
    pairs, key = [], {}
    for number, index in enumerate(map(int, order)):
        shown = [
            page.data_url(read_image(of[index], sides[0], "exact"), SHOWN_SIDE) for of in files
        ]
        left, right = shown[::-1] if flipped[number] else shown
        text, category = prompts[index % len(prompts)]
        pairs.append({"left": left, "right": right, "text": text})
        key[str(number)] = {"left": "b" if flipped[number] else "a", "prompt": text,
                            "category": category}  # fmt: skip
    (output / PAGE).parent.mkdir(parents=True, exist_ok=True)
    identity = fingerprint([key, [record["job"] for record in records]])[:16]
    named = {"a": str(a), "b": str(b)}
    with atomic_path(output / KEY, new=True) as temporary:
        record = {"id": identity, "models": named, "pairs": key, "seed": seed}
        temporary.write_bytes(as_json(record))
    data = json.dumps({"id": identity, "questions": QUESTIONS, "pairs": pairs})
    body = [_BODY, f'<script type="application/json" id="data">{_inert(data)}</script>',
            f"<script>{_SCRIPT}</script>"]  # fmt: skip
    page.write_page(output / PAGE, "Which image is better?", body, f"<style>{_STYLE}</style>")
    return count


def _inert(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c")


def _read_jobs(a: Path, b: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    records = []
    for run in (a, b):
        if not (run / "scores.json").is_file() or not (run / "prompts.json").is_file():
            raise UserError(
                f"{run} has no scores.json of `imagen evaluate prompts`; finish it first"
            )
        records.append(read_json(run / "scores.json", "record of scores"))
        if "per_prompt" not in records[-1]:
            raise UserError(f"{run} has scores of another kind; give what `prompts` wrote")
    for field in ("prompts", "per_prompt"):
        if records[0][field] != records[1][field]:
            raise UserError(f"{a} and {b} are of different prompts ({field} differs)")
    prompts = a / "prompts.json"
    return parse_json(prompts.read_bytes(), prompts), records


_STYLE = """
body { max-width: 62em; }
.prompt { font-size: 1.35em; line-height: 1.35; margin: .6em 0 1.2em; min-height: 2.7em; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5em; }
.pair img { width: 100%; border-radius: 8px; border: 1px solid var(--line); display: block;
  image-rendering: pixelated; }
fieldset { border: 0; padding: 0; margin: 1.6em 0 0; }
legend { padding: 0 0 .5em; font-weight: 500; }
.answers { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: .8em; }
button { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: 8px; padding: .65em 1em; cursor: pointer; }
button:hover:enabled { border-color: var(--accent); }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: #fff; }
button:disabled { opacity: .4; cursor: default; }
kbd { font: 12px ui-monospace, monospace; opacity: .65; }
.row { display: flex; gap: .8em; align-items: center; margin-top: 2em; flex-wrap: wrap; }
.row .soft { margin-left: auto; }
progress { width: 100%; height: 5px; accent-color: var(--accent); }
input { font: inherit; padding: .5em .7em; border: 1px solid var(--line); border-radius: 8px;
  background: var(--paper); color: inherit; }
"""

_BODY = """
<h1>Which image is better?</h1>
<progress id="progress" value="0" max="1"></progress>
<p class="prompt" id="prompt"></p>
<div class="pair"><img id="left" alt="left image"><img id="right" alt="right image"></div>
<div id="questions"></div>
<div class="row">
  <button id="back">← back</button><button id="next">next →</button>
  <label>your name <input id="person" autocomplete="off" size="14"></label>
  <button id="download">download votes</button>
  <span class="soft" id="state"></span>
</div>
<p class="soft">Votes stay in this browser until you download them; send the file to whoever asked
you. Keys: 1 2 3 answer the first question, 4 5 6 the second, ← and → move.</p>
"""

_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const place = "imagen-votes-" + data.id;
const kept = JSON.parse(localStorage.getItem(place) || "null") || { person: "", votes: {} };
const names = Object.keys(data.questions), answers = ["left", "none", "right"];
const words = { left: "left", none: "no preference", right: "right" };
const complete = (i) => names.every((name) => (kept.votes[i] || {})[name]);
let current = data.pairs.findIndex((_, i) => !complete(i));
if (current < 0) current = data.pairs.length - 1;

names.forEach((name, q) => {
  const field = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = data.questions[name];
  const row = document.createElement("div");
  row.className = "answers";
  answers.forEach((answer, k) => {
    const button = document.createElement("button");
    button.innerHTML = words[answer] + " <kbd>" + (3 * q + k + 1) + "</kbd>";
    button.dataset.question = name;
    button.dataset.answer = answer;
    button.onclick = () => vote(name, answer);
    row.append(button);
  });
  field.append(legend, row);
  at("questions").append(field);
});

function keep() { localStorage.setItem(place, JSON.stringify(kept)); }

function vote(name, answer) {
  kept.votes[current] = { ...kept.votes[current], [name]: answer };
  keep();
  show();
}

function move(step) {
  current = Math.min(Math.max(current + step, 0), data.pairs.length - 1);
  show();
}

function show() {
  const pair = data.pairs[current];
  at("prompt").textContent = pair.text;
  at("left").src = pair.left;
  at("right").src = pair.right;
  document.querySelectorAll("[data-question]").forEach((button) => {
    const chosen = (kept.votes[current] || {})[button.dataset.question];
    button.setAttribute("aria-pressed", chosen === button.dataset.answer);
  });
  const done = data.pairs.filter((_, i) => complete(i)).length;
  at("progress").value = done / data.pairs.length;
  at("state").textContent =
    "pair " + (current + 1) + " of " + data.pairs.length + ", " + done + " answered";
  at("back").disabled = current === 0;
  at("next").disabled = current === data.pairs.length - 1 || !complete(current);
  at("download").disabled = !kept.person.trim() || !Object.keys(kept.votes).length;
}

at("back").onclick = () => move(-1);
at("next").onclick = () => move(1);
at("person").value = kept.person;
at("person").oninput = () => { kept.person = at("person").value; keep(); show(); };
at("download").onclick = () => {
  const content = JSON.stringify({ id: data.id, person: kept.person.trim(), votes: kept.votes });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = "votes-" + kept.person.trim().replace(/[^\\w-]+/g, "_") + ".json";
  link.click();
};
document.onkeydown = (event) => {
  if (event.target.tagName === "INPUT") return;
  const number = Number(event.key);
  if (number >= 1 && number <= 3 * names.length) {
    vote(names[Math.floor((number - 1) / 3)], answers[(number - 1) % 3]);
  } else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight" && complete(current)) move(1);
};
show();
"""
