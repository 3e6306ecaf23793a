// The sample browser: search, filters, sorting, pages, and a link to each sample.
// Data is always inserted as text (textContent), never as HTML.
"use strict";

const PER_PAGE = 50;
const SHORT = 240; // number of characters of a question or text in a row
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const linkOf = (sample) => "#" + encodeURIComponent(sample.id);
const byLink = new Map(data.samples.map((sample) => [linkOf(sample), sample]));
let found = data.samples;
let page = 0;
let opened = null;

function element(tag, text, ...classes) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

const shorten = (text) => (text.length > SHORT ? text.slice(0, SHORT) + " …" : text);
const student = () => data.students[find("student").value];
const gold = (sample) => (sample.g < 0 ? undefined : "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[sample.g]);
const flagsOf = (sample) => [...new Set([...sample.f, ...sample.t.flatMap((text) => text[2])])];
const shownTexts = (sample) => {
  const source = find("source").value;
  return source === "" ? sample.t : sample.t.filter((text) => text[0] === Number(source));
};
const lengthOf = (sample) => shownTexts(sample).reduce((sum, text) => sum + text[1].length, 0);

// Whether the answer is right or wrong, and whether it differs between the untrained and the trained student.
function outcome(sample) {
  const chosen = student();
  if (!chosen || sample.g < 0) return "";
  const [before, after] = [sample.a[chosen.before], sample.a[chosen.after]];
  const last = after ?? before;
  if (last === undefined) return "";
  const words = [last === gold(sample) ? "right" : "wrong"];
  if (before !== undefined && after !== undefined && (before === gold(sample)) !== (after === gold(sample))) {
    words.push("flipped", `flipped-${words[0]}`);
  }
  return words;
}

function haystack(sample) {
  sample.hay ??= [sample.id, sample.q, ...sample.c, ...sample.t.map((text) => text[1])].join("\n").toLowerCase();
  return sample.hay;
}

function matches(sample, wanted) {
  if (wanted.set && sample.set !== wanted.set) return false;
  const texts = shownTexts(sample);
  if (find("source").value !== "" && !texts.length) return false;
  if (wanted.flag === "none" ? flagsOf(sample).length : wanted.flag && !hasFlag(sample, texts, wanted.flag)) return false;
  if (wanted.outcome && !outcome(sample).includes(wanted.outcome)) return false;
  if (wanted.shortest || wanted.longest < Infinity) {
    const length = lengthOf(sample);
    if (length < wanted.shortest || length > wanted.longest) return false;
  }
  return haystack(sample).includes(wanted.phrase);
}

const hasFlag = (sample, texts, flag) => sample.f.includes(flag) || texts.some((text) => text[2].includes(flag));

const ORDERS = {
  order: null,
  shortest: (a, b) => lengthOf(a) - lengthOf(b),
  longest: (a, b) => lengthOf(b) - lengthOf(a),
  flags: (a, b) => flagsOf(b).length - flagsOf(a).length,
  question: (a, b) => (a.q < b.q ? -1 : a.q > b.q ? 1 : 0),
};

function update() {
  const wanted = {
    phrase: find("search").value.toLowerCase().trim(),
    set: find("set").value,
    flag: find("flag").value,
    outcome: find("outcome").value,
    shortest: Number(find("min").value) || 0,
    longest: find("max").value === "" ? Infinity : Number(find("max").value),
  };
  found = data.samples.filter((sample) => matches(sample, wanted));
  if (ORDERS[find("sort").value]) found.sort(ORDERS[find("sort").value]);
  page = 0;
  render();
}

function render() {
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  find("count").textContent = `${found.length} of ${data.samples.length} samples, page ${page + 1} of ${pages}`;
  find("before").disabled = page === 0;
  find("after").disabled = page === pages - 1;
  find("rows").replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(row));
}

function row(sample) {
  const open = sample === opened;
  const made = element("article", undefined, "sample");
  made.id = sample.id;
  const head = element("header");
  const link = element("a", sample.id);
  link.href = linkOf(sample);
  head.append(link, ...flagsOf(sample).map((flag) => element("span", flag, "flag")), ...answers(sample));
  const question = element("p", open ? sample.q : shorten(sample.q), "question");
  made.append(head, question, choices(sample));
  for (const [source, text, flags] of shownTexts(sample)) {
    made.append(element("h4", [data.sources[source], ...flags].join(" · ")));
    made.append(element("p", open ? text : shorten(text), "text"));
  }
  if (open) made.append(...sample.e.map((said) => element("p", JSON.stringify(said), "evidence")));
  const more = element("button", open ? "less" : "more");
  more.addEventListener("click", () => show(open ? null : sample));
  made.append(more);
  return made;
}

function answers(sample) {
  const chosen = student();
  if (!chosen) return [];
  const said = [["before", sample.a[chosen.before]], ["after", sample.a[chosen.after]]];
  return said.filter(([, choice]) => choice !== undefined).map(([when, choice]) =>
    element("span", `${when}: ${choice}`, sample.g < 0 ? "unknown" : choice === gold(sample) ? "right" : "wrong"));
}

function choices(sample) {
  if (sample.r !== undefined) return element("p", `The answer is ${sample.r}`, "right");
  const list = element("ol", undefined, "choices");
  list.append(...sample.c.map((text, index) => element("li", text, index === sample.g ? "gold" : "other")));
  return list;
}

function show(sample) {
  opened = sample;
  if (sample && !found.includes(sample)) found = [sample, ...found];
  if (sample) page = Math.floor(found.indexOf(sample) / PER_PAGE);
  render();
  if (sample) document.getElementById(sample.id).scrollIntoView();
}

function follow() {
  const sample = byLink.get(location.hash);
  if (sample) show(sample);
}

function fill(id, pairs) {
  find(id).append(...pairs.map(([value, text]) => Object.assign(element("option", text), { value })));
}

fill("source", data.sources.map((name, index) => [index, name]));
fill("student", data.students.map((one, index) => [index, one.name]));
fill("flag", [...new Set(data.samples.flatMap(flagsOf))].sort().map((flag) => [flag, flag]));
for (const id of ["search", "min", "max"]) find(id).addEventListener("input", update);
for (const id of ["set", "source", "flag", "outcome", "student", "sort"]) find(id).addEventListener("change", update);
find("before").addEventListener("click", () => { page -= 1; render(); });
find("after").addEventListener("click", () => { page += 1; render(); });
addEventListener("hashchange", follow);
render();
follow();
