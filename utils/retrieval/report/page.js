"use strict";
// The gallery and the selection on the map. Everything that comes from the data is inserted as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 8; // cards that are shown before "Show more"
const byId = (id) => document.getElementById(id);
const cards = byId("cards"), count = byId("count"), more = byId("more"), search = byId("search"), sort = byId("sort");
let shown = PAGE; // cards to show of those that match
let matching = []; // queries that pass the filters, in order
let filters = []; // select elements

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// ---- Cards

// An image with its frame. kind: query, positive, correct, wrong or unknown.
function picture(cell, kind, label) {
  const image = data.images[cell.image];
  let content;
  if (cell.image === null) {
    content = element("p", "", "none");
  } else if (image.src) {
    content = element("img");
    content.src = image.src;
    content.alt = label;
    content.loading = "lazy";
  } else {
    content = element("p", "", image.problem);
  }
  const mark = { correct: "✔ ", wrong: "✘ " }[kind] || "";
  const caption = element("figcaption", "", element("span", "mark", mark), cell.captions[0]);
  for (const line of cell.captions.slice(1)) caption.append(element("br"), line);
  const figure = element("figure", kind, element("div", "frame", content), caption);
  if (image) figure.title = image.name;
  return figure;
}

function kindOf(cell) {
  return cell.correct === null ? "unknown" : cell.correct ? "correct" : "wrong";
}

function paths(query) {
  const list = element("ul", "", element("li", "", `Query: ${data.images[query.image].name}`));
  if (query.positive && query.positive.image !== null) {
    list.append(element("li", "", `Nearest positive: ${data.images[query.positive.image].name}`));
  }
  query.rows.forEach((row, i) => {
    const ranks = element("ol", "", ...row.map((cell) => element("li", "", data.images[cell.image].name)));
    list.append(element("li", "", data.rows[i], ranks));
  });
  return element("details", "", element("summary", "", "Paths"), list);
}

function card(query) {
  const made = element("li", "card");
  const title = element("h3", "", ...query.marks.map((m) => element("span", m.kind, element("span", "mark", m.text), " ")));
  title.append(data.images[query.image].name.split("/").pop());
  title.id = `query-${query.number}`;
  const pair = element("div", "pair", picture({ image: query.image, captions: ["Query"] }, "query", "Query"));
  if (query.positive) pair.append(picture(query.positive, "positive", "Nearest positive"));
  const rows = element("div");
  query.rows.forEach((row, i) => {
    const list = element("ol", "row");
    row.forEach((cell, rank) => {
      const word = { correct: ", right", wrong: ", wrong", unknown: "" }[kindOf(cell)];
      list.append(element("li", "", picture(cell, kindOf(cell), `Prediction ${rank + 1}${word}`)));
    });
    rows.append(element("p", "row-label", data.rows[i]), list);
  });
  const actions = element("div", "actions", paths(query));
  if (byId("map") && (placeOf(query.image) || placeOf(best(query).image))) {
    const button = element("button", "", "On the map");
    button.type = "button";
    button.setAttribute("aria-describedby", title.id);
    button.addEventListener("click", () => showOnMap(query));
    actions.append(button);
  }
  made.append(title, element("div", query.rows.length > 1 ? "parts stacked" : "parts", pair, rows), actions);
  made.tabIndex = -1;
  made.setAttribute("aria-labelledby", title.id);
  made.query = query;
  return made;
}

// ---- Filters, search, order

function update() {
  const words = search.value.toLowerCase();
  matching = data.queries.filter((query) =>
    filters.every((select) => !select.value || query.tags.includes(select.value)) &&
    data.images[query.image].name.toLowerCase().includes(words));
  const { key, descending } = data.sorts[sort.value];
  const sign = descending ? -1 : 1;
  matching.sort((a, b) => (a.sort[key] === null) - (b.sort[key] === null) || sign * (a.sort[key] - b.sort[key]));
  draw();
}

function draw() {
  const visible = matching.slice(0, shown);
  cards.replaceChildren(...visible.map((query) => (query.card ||= card(query))));
  visible.forEach((query, i) => (query.card.tabIndex = i ? -1 : 0)); // the Tab key enters the list at one card
  count.textContent = `${visible.length} of ${matching.length} matching queries shown; ${data.queries.length} in this page.`;
  more.hidden = visible.length === matching.length;
}

function restart() {
  shown = PAGE;
  update();
}

for (const filter of data.filters) {
  const select = element("select");
  select.append(new Option(`all (${data.queries.length})`, ""));
  for (const option of filter.options) select.append(new Option(`${option.label} (${option.count})`, option.tag));
  select.id = `filter-${filters.length}`;
  filters.push(select);
  byId("controls").insertBefore(element("label", "", filter.label, select), byId("controls").firstChild);
  select.addEventListener("change", restart);
}
byId("positive-legend").hidden = !data.queries.some((query) => query.positive);
byId("outcome-legend").hidden = !data.queries.some((query) => query.rows.flat().some((cell) => cell.correct !== null));
data.sorts.forEach((order, i) => sort.append(new Option(order.label, i)));
search.addEventListener("input", restart);
sort.addEventListener("change", restart);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => {
  const first = shown;
  shown += 2 * PAGE;
  draw();
  focusCard(first);
});

// ---- Keys

function focusCard(i) {
  if (i >= shown && i < matching.length) {
    shown += PAGE;
    draw();
  }
  const target = cards.children[Math.max(0, Math.min(i, cards.children.length - 1))];
  if (!target) return;
  for (const other of cards.children) other.tabIndex = other === target ? 0 : -1;
  target.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select")) return;
  const current = event.target.closest(".card");
  const i = current ? [...cards.children].indexOf(current) : -1;
  if (event.key === "/") search.focus();
  else if (event.key === "j" || (current && event.key === "ArrowRight")) focusCard(i + 1);
  else if (event.key === "k" || (current && event.key === "ArrowLeft")) focusCard(i - 1);
  else if (current && event.key === "Home") focusCard(0);
  else if (current && event.key === "End") focusCard(Math.min(shown, matching.length) - 1);
  else if (event.target === current && current && event.key === "Enter") {
    const details = current.querySelector("details");
    details.open = !details.open;
  } else return;
  event.preventDefault();
});

// ---- The map

function shape(tag, className, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// The first prediction of the last row.
function best(query) {
  return query.rows.at(-1)[0];
}

// Where an image is on the map, or null.
function placeOf(image) {
  return data.images[image].xy;
}

// A ring around the query and a line to its first prediction, or a ring around that one, as far as the places are known.
function select(query) {
  const from = placeOf(query.image), to = placeOf(best(query).image);
  const [x, y] = from || to;
  byId("selected").replaceChildren(shape("circle", "", { cx: x, cy: y, r: 9 }));
  if (from && to) byId("selected").prepend(shape("line", kindOf(best(query)), { x1: x, y1: y, x2: to[0], y2: to[1] }));
}

function showOnMap(query) {
  select(query);
  byId("map-section").scrollIntoView();
  byId("map-back").hidden = false;
  byId("map-back").query = query;
  byId("map-back").focus();
}

function showInGallery(query) {
  if (!matching.includes(query)) {
    for (const filter of filters) filter.value = "";
    search.value = "";
    update();
  }
  focusCard(0);
  shown = Math.max(shown, matching.indexOf(query) + 1);
  draw();
  focusCard(matching.indexOf(query));
}

if (byId("map")) {
  byId("map-back").addEventListener("click", () => showInGallery(byId("map-back").query));
  byId("map").addEventListener("click", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(byId("map").getScreenCTM().inverse());
    const distance = (query) => {
      const place = placeOf(query.image);
      return place ? Math.hypot(place[0] - point.x, place[1] - point.y) : Infinity;
    };
    const nearest = data.queries.reduce((a, b) => (distance(b) < distance(a) ? b : a), data.queries[0]);
    if (!nearest || distance(nearest) > 12) return;
    select(nearest);
    byId("map-back").hidden = false;
    byId("map-back").query = nearest;
  });
}

update();
