"use strict";
// Sends an image, and shows the answer. Everything that comes from the service is inserted as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const MATCHES = 10;
const byId = (id) => document.getElementById(id);
let asking = null; // the AbortController of the request that is on its way
let shownImage = null; // the address of the image that is shown

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function say(text, isProblem = false) {
  byId("status").textContent = text;
  byId("status").className = isProblem ? "problem" : "";
}

// ---- Asking. A newer image takes the place of one that is on its way.

async function ask(image) {
  if (asking) asking.abort();
  const own = (asking = new AbortController());
  say("Searching …");
  try {
    const options = { method: "POST", body: image, headers: { "Content-Type": "image/*" }, signal: own.signal };
    const response = await fetch(`search?k=${MATCHES}`, options);
    const answer = await response.json();
    if (own !== asking) return;
    if (response.ok) show(image, answer);
    else say(answer.error, true);
  } catch (error) {
    if (own === asking) say("The service does not answer. Is it still running?", true);
  }
}

async function askExample(i) {
  try {
    const response = await fetch(`examples/${i}`);
    if (response.ok) ask(await response.blob());
    else say((await response.json()).error, true);
  } catch (error) {
    say("The service does not answer. Is it still running?", true);
  }
}

function askFirst(files) {
  const image = [...files].find((file) => file.type.startsWith("image/")) || files[0];
  if (image) ask(image);
}

for (const input of [byId("file"), byId("camera")]) {
  input.addEventListener("change", () => {
    askFirst(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) askFirst(event.clipboardData.files);
  else say("What was pasted is no image. Copy an image, not its address.", true);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (event.dataTransfer.files.length) askFirst(event.dataTransfer.files);
  else say("What was dropped is no file. Save the image first, and drop its file.", true);
});

// ---- The answer

function show(image, answer) {
  if (shownImage) URL.revokeObjectURL(shownImage);
  shownImage = URL.createObjectURL(image);
  byId("query").src = shownImage;
  const words = { true: "A known place", false: "An unknown place", null: "The nearest images" };
  byId("verdict").textContent = answer.matches.length ? words[answer.accepted] : "The index is empty";
  byId("verdict").className = answer.accepted ? "correct" : "";
  byId("place").replaceChildren(...placeLines(answer.place));
  byId("matches").replaceChildren(...answer.matches.map((match) => matchItem(match, answer.max_distance)));
  byId("with-threshold").hidden = answer.max_distance === null;
  byId("without-threshold").hidden = answer.max_distance !== null;
  byId("found").hidden = false;
  drawOnMap(answer);
  const total = Object.values(answer.seconds).reduce((a, b) => a + b, 0);
  say(`${byId("verdict").textContent}: ${answer.matches.length} matches in ${total.toFixed(2)} s.`);
}

function placeLines(place) {
  if (!place) return [];
  const lines = [];
  if (place.easting !== null) lines.push(`${place.easting.toFixed(1)} E, ${place.northing.toFixed(1)} N`);
  if (place.latitude !== null) {
    const at = [place.latitude.toFixed(6), place.longitude.toFixed(6)];
    const link = element("a", "", `${at[0]}, ${at[1]}`);
    link.href = `https://www.openstreetmap.org/?mlat=${at[0]}&mlon=${at[1]}#map=18/${at[0]}/${at[1]}`;
    link.rel = "noreferrer";
    lines.push(link);
  }
  if (place.radius !== null) lines.push(`within ${place.radius.toFixed(0)} m in 90 % of cases`);
  return lines.flatMap((line) => [line, element("br")]);
}

function matchItem(match, limit) {
  const kind = limit === null ? "unknown" : match.distance <= limit ? "correct" : "beyond";
  const image = element("img");
  image.src = `images/${match.id}`;
  image.alt = `Match ${match.rank}`;
  image.addEventListener("error", () => image.replaceWith(element("p", "", "There is no picture of it.")));
  const digits = match.metric === "hamming" ? 0 : 3;
  const caption = element("figcaption", "", element("span", "mark", kind === "correct" ? "✔ " : ""));
  caption.append(`${match.rank}: ${match.distance.toFixed(digits)}`);
  if (match.name !== null) caption.append(element("br"), match.name);
  const item = element("li", "", element("figure", kind, element("div", "frame", image), caption));
  item.tabIndex = match.rank === 1 ? 0 : -1; // the Tab key enters the list at one match
  item.match = match;
  item.addEventListener("focus", () => markCurrent(match));
  item.addEventListener("click", () => item.focus());
  return item;
}

// ---- The map

function shape(className, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  made.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// [x, y] of what has a position, or null.
function onMap(place) {
  if (!data.map) return null;
  const { x, y, unit } = data.map;
  const [right, up] = unit === "degrees" ? [place.longitude, place.latitude] : [place.easting, place.northing];
  return right === null ? null : [x[0] + x[1] * right, y[0] + y[1] * up];
}

function drawOnMap(answer) {
  if (!data.map) return;
  const shapes = [];
  for (const match of answer.matches) {
    const at = onMap(match);
    if (!at) continue;
    const ring = shape("match", { cx: at[0], cy: at[1], r: 6 });
    ring.match = match;
    shapes.push(ring);
  }
  const at = answer.place && onMap(answer.place);
  if (at) {
    const { radius } = answer.place;
    if (radius !== null) shapes.push(shape("radius", { cx: at[0], cy: at[1], r: radius * data.map.metre }));
    shapes.push(shape("place", { cx: at[0], cy: at[1], r: 6 }));
  }
  byId("selected").replaceChildren(...shapes);
}

// ---- Streets from OpenStreetMap, only where the user switches them on

const TILE = 256; // pixels
const MOST_TILES = 64;
const BOUND = { width: 640, height: byId("map") ? byId("map").viewBox.baseVal.height : 0 }; // of the map, in its units

// [x, y] on the map of a longitude and a latitude.
function earthOnMap(longitude, latitude) {
  return data.map.earth.map(([a, b, c]) => a * longitude + b * latitude + c);
}

// [longitude, latitude] of a point of the map.
function mapOnEarth(x, y) {
  const [[a, b, c], [d, e, f]] = data.map.earth;
  const determinant = a * e - b * d;
  return [(e * (x - c) - b * (y - f)) / determinant, (a * (y - f) - d * (x - c)) / determinant];
}

// The column and row of the tile at a place, with fractions (Web Mercator), and back.
function tileOf([longitude, latitude], zoom) {
  const angle = (latitude * Math.PI) / 180;
  const y = 0.5 - Math.asinh(Math.tan(angle)) / (2 * Math.PI);
  return [(longitude / 360 + 0.5) * 2 ** zoom, y * 2 ** zoom];
}

function placeOfTile(column, row, zoom) {
  const angle = Math.atan(Math.sinh(Math.PI * (1 - (2 * row) / 2 ** zoom)));
  return [(column / 2 ** zoom - 0.5) * 360, (angle * 180) / Math.PI];
}

// The columns and rows that cover the map.
function tileRange(zoom) {
  const corners = [[0, 0], [BOUND.width, 0], [0, BOUND.height], [BOUND.width, BOUND.height]];
  const tiles = corners.map(([x, y]) => tileOf(mapOnEarth(x, y), zoom));
  const span = (i) => {
    const values = tiles.map((tile) => tile[i]);
    const last = 2 ** zoom - 1;
    return [Math.max(0, Math.floor(Math.min(...values))), Math.min(last, Math.floor(Math.max(...values)))];
  };
  return { columns: span(0), rows: span(1) };
}

function tileImage(column, row, zoom) {
  const [start, right, down] = [[0, 0], [1, 0], [0, 1]].map(([dx, dy]) =>
    earthOnMap(...placeOfTile(column + dx, row + dy, zoom)));
  const across = right.map((value, i) => (value - start[i]) / TILE);
  const below = down.map((value, i) => (value - start[i]) / TILE);
  const image = document.createElementNS("http://www.w3.org/2000/svg", "image");
  image.setAttribute("transform", `matrix(${[...across, ...below, ...start].join(" ")})`);
  image.setAttribute("width", TILE);
  image.setAttribute("height", TILE);
  image.addEventListener("error", () => say("OpenStreetMap does not answer, or refuses.", true));
  image.setAttribute("href", `${data.tiles}/${zoom}/${column}/${row}.png`);
  return image;
}

function tiles() {
  const latitude = mapOnEarth(BOUND.width / 2, BOUND.height / 2)[1];
  const [left] = earthOnMap(0, latitude);
  const [right] = earthOnMap(360, latitude);
  const pixels = (Math.abs(right - left) * byId("map").clientWidth) / BOUND.width; // of the whole Earth
  let zoom = Math.min(19, Math.max(0, Math.round(Math.log2(pixels / TILE))));
  const count = ({ columns, rows }) => (columns[1] - columns[0] + 1) * (rows[1] - rows[0] + 1);
  while (zoom > 0 && count(tileRange(zoom)) > MOST_TILES) zoom--;
  const { columns, rows } = tileRange(zoom);
  const images = [];
  for (let row = rows[0]; row <= rows[1]; row++) {
    for (let column = columns[0]; column <= columns[1]; column++) images.push(tileImage(column, row, zoom));
  }
  return images;
}

if (data.map && data.map.earth) {
  const layer = document.createElementNS("http://www.w3.org/2000/svg", "g");
  byId("map").prepend(layer); // below everything else
  byId("tiles-control").hidden = false;
  byId("tiles-on").addEventListener("change", () => {
    const isOn = byId("tiles-on").checked;
    layer.replaceChildren(...(isOn ? tiles() : []));
    byId("map").classList.toggle("with-tiles", isOn);
    byId("attribution").hidden = !isOn;
  });
}

function markCurrent(match) {
  if (!data.map) return;
  for (const ring of byId("selected").children) ring.classList.toggle("current", ring.match === match);
}

// ---- Keys

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const item = event.target.closest("#matches li");
  if (event.key === "o") byId("file").click();
  else if (event.key >= "1" && event.key <= "9" && Number(event.key) <= data.examples) askExample(event.key - 1);
  else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const items = [...byId("matches").children];
    const next = item ? items.indexOf(item) + (event.key === "ArrowRight" ? 1 : -1) : 0;
    if (!items[next]) return;
    for (const each of items) each.tabIndex = each === items[next] ? 0 : -1;
    items[next].focus();
  } else return;
  event.preventDefault();
});

// ---- Examples

for (let i = 0; i < data.examples; i++) {
  const image = element("img");
  image.src = `examples/${i}/thumbnail`;
  image.alt = `Example ${i + 1}`;
  const button = element("button", "", image);
  button.type = "button";
  button.addEventListener("click", () => askExample(i));
  byId("examples").append(element("li", "", button));
}
byId("examples-section").hidden = !data.examples;
