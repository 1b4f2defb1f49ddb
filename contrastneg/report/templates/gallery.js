"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const queries = [...document.querySelectorAll(".query")];
const filters = ["class", "kind", "bin", "detector"].map((name) => document.getElementById("by-" + name)).filter(Boolean);
const words = { same: "same class", other: "other class", unknown: "class unknown" };
let current = 0;

function chosen(name) {
  const filter = document.getElementById("by-" + name);
  return filter ? filter.value : "";
}

function passes(item) {
  const { kind, bin, removed } = item.dataset;
  return (
    (!chosen("kind") || kind === chosen("kind")) &&
    (!chosen("bin") || bin === chosen("bin")) &&
    (!chosen("detector") || removed.split("|").includes(chosen("detector")))
  );
}

function buttonsOf(query) {
  return [...query.querySelectorAll("li:not([hidden]) button")];
}

function matching() {
  return queries.filter((query) => !chosen("class") || query.dataset.class === chosen("class"));
}

function show() {
  const kept = matching();
  const some = kept.some((query) => [...query.querySelectorAll("li")].some(passes));
  current = Math.max(0, Math.min(current, kept.length - 1));
  for (const query of queries) {
    query.hidden = !some || query !== kept[current];
    for (const item of query.querySelectorAll("li")) item.hidden = !passes(item);
  }
  const buttons = kept.length ? buttonsOf(kept[current]) : [];
  const total = kept.length ? kept[current].querySelectorAll("li").length : 0;
  document.getElementById("shown").textContent =
    "query " + (kept.length ? current + 1 : 0) + " of " + kept.length + ", " + buttons.length + " of " + total + " negatives";
  document.getElementById("nothing").hidden = buttons.length > 0;
  document.querySelector("#nothing span").textContent = some
    ? "No negative of this query matches these filters."
    : "No query matches these filters.";
  document.getElementById("previous").disabled = current === 0;
  document.getElementById("next").disabled = current >= kept.length - 1;
  if (buttons.length) select(buttons[0], false);
  else document.getElementById("details").replaceChildren();
}

function select(button, focus) {
  for (const other of document.querySelectorAll(".negatives button")) {
    other.setAttribute("aria-pressed", String(other === button));
    other.tabIndex = other === button ? 0 : -1;
  }
  if (focus) button.focus();
  tell(data.queries[button.dataset.query][button.dataset.place]);
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function tell(shown) {
  const list = document.createElement("dl");
  data.methods.forEach((name, place) => {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", shown.effects[place]));
    list.append(pair);
  });
  const place = "rank " + shown.rank.toLocaleString("en") + " of " + data.candidates.toLocaleString("en");
  const title = element("h3", place + ", cosine " + shown.cosine.toFixed(3) + ": " + words[shown.kind]);
  const facts = element("p", shown.class + " · " + shown.name + " · " + data.bins[shown.bin]);
  facts.className = "quiet";
  document.getElementById("details").replaceChildren(title, facts, list);
}

function turn(step) {
  current += step;
  show();
}

for (const filter of filters)
  filter.addEventListener("change", () => {
    if (filter.id === "by-class") current = 0;
    show();
  });
document.getElementById("clear").addEventListener("click", () => {
  for (const filter of filters) filter.value = "";
  show();
  filters[0].focus();
});
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
document.getElementById("queries").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) select(button, false);
});
document.getElementById("queries").addEventListener("keydown", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const buttons = buttonsOf(button.closest(".query"));
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const kept = matching().length;
  if (event.key in steps) {
    const next = buttons[buttons.indexOf(button) + steps[event.key]];
    if (next) select(next, true);
  } else if (event.key === "Home" || event.key === "End") {
    select(buttons[event.key === "Home" ? 0 : buttons.length - 1], true);
  } else if (event.key === "PageDown" || event.key === "PageUp") {
    const to = current + (event.key === "PageDown" ? 1 : -1);
    if (to >= 0 && to < kept) turn(to - current);
    const first = document.querySelector(".query:not([hidden]) li:not([hidden]) button");
    if (first) first.focus();
  } else return;
  event.preventDefault();
});
show();
