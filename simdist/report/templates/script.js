"use strict";

// --- tables: a click on a heading sorts, by the number that a cell begins with where there is one --------------------
const number = (text) => (/^\s*[+\-−]?\d/.test(text) ? parseFloat(text.trim().replace("−", "-").replace(/,/g, "")) : NaN);

function compare(a, b) {
  const [x, y] = [number(a), number(b)];
  if (!isNaN(x) && !isNaN(y) && x !== y) return x - y;
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sort(heading, column) {
  const table = heading.closest("table"), body = table.tBodies[0];
  const down = heading.getAttribute("aria-sort") === "ascending" ||
    (!heading.hasAttribute("aria-sort") && heading.classList.contains("number"));
  const text = (row) => row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [text(a), text(b)], [no, none] = [x === "–", y === "–"];
    return no || none ? no - none : (down ? -1 : 1) * compare(x, y);
  });
  table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...rows);
}

document.querySelectorAll("table.sortable thead").forEach((head) => {
  [...head.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(heading, column));
    heading.append(button);
  });
});

// --- charts: drawn by bokeh when they come near, in the page's colors; the SVG stays for paper ----------------------
const dark = matchMedia("(prefers-color-scheme: dark)"), hidden = new Set(), drawn = [];

function theme(plot) {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule, paper] = ["--ink", "--rule", "--paper"].map((name) => style.getPropertyValue(name).trim());
  Object.assign(plot, { border_fill_color: paper, background_fill_color: paper });
  for (const axis of [...plot.below, ...plot.left]) {
    Object.assign(axis, { axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink, major_tick_line_color: ink });
  }
  for (const line of plot.center) if (line.type === "Grid") line.grid_line_color = rule;
}

function show(plot) {
  for (const renderer of plot.renderers) renderer.visible = !hidden.has(renderer.name);
}

async function draw(figure) {
  const place = figure.querySelector(".live");
  try {
    const views = await Bokeh.embed.embed_item(JSON.parse(figure.querySelector("script").textContent), place);
    const plot = (views.roots ?? views)[0].model;
    theme(plot);
    show(plot);
    drawn.push(plot);
    figure.classList.add("is-live");
  } catch (error) {
    place.replaceChildren();
    console.error("a chart stays still:", error);
  }
}

const near = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) if (isIntersecting) { near.unobserve(target); draw(target); }
}, { rootMargin: "300px" });
document.querySelectorAll(".chart").forEach((figure) => near.observe(figure));
dark.addEventListener("change", () => drawn.forEach(theme));

document.querySelectorAll(".legend li").forEach((item) => {
  const button = document.createElement("button"), name = item.dataset.encoder;
  button.append(...item.childNodes);
  button.setAttribute("aria-pressed", "true");
  button.title = "show or hide in all charts";
  button.addEventListener("click", () => {
    hidden.has(name) ? hidden.delete(name) : hidden.add(name);
    drawn.forEach(show);
    document.querySelectorAll(`.legend li[data-encoder="${name}"] button`).forEach((each) => each.setAttribute("aria-pressed", String(!hidden.has(name))));
  });
  item.append(button);
});

// --- sounds: a slider instead of a list ------------------------------------------------------------------------------
const make = (name, properties = {}) => Object.assign(document.createElement(name), properties);

function deck(track) {
  const list = track.querySelector(".sounds"), sounds = [...list.children], box = make("div", { className: "deck" });
  const label = make("label", { textContent: `${track.dataset.quantity}: ` }), says = make("output");
  const slider = make("input", { type: "range", min: 0, max: sounds.length - 1, step: 1 });
  const ends = make("div", { className: "ends" }), audio = make("audio", { controls: true, preload: "auto" });
  slider.value = track.dataset.quantity.startsWith("value") ? Math.floor(sounds.length / 2) : 0;
  label.append(says, slider);
  ends.append(make("span", { textContent: sounds[0].dataset.value }), make("span", { textContent: sounds.at(-1).dataset.value }));
  let wave = null;
  const turn = () => {
    const sound = sounds[slider.value], drawing = sound.querySelector(".wave").cloneNode(true);
    says.textContent = sound.dataset.value;
    slider.setAttribute("aria-valuetext", sound.dataset.value);
    audio.src = sound.querySelector("audio").src;
    wave ? wave.replaceWith(drawing) : box.append(drawing);
    wave = drawing;
  };
  box.append(label, ends);
  turn();
  box.append(audio);
  slider.addEventListener("input", () => { turn(); audio.play().catch(() => {}); });
  const all = make("details");
  all.append(make("summary", { textContent: `All ${sounds.length} sounds` }), list);
  track.append(box, all);
}

document.querySelectorAll(".player").forEach((player) => {
  const tracks = [...player.querySelectorAll(".track")];
  tracks.forEach(deck);
  if (tracks.length < 2) return;
  const choice = make("select", { ariaLabel: "dimension" });
  const turn = () => tracks.forEach((track, place) => { track.hidden = place !== choice.selectedIndex; });
  choice.append(...tracks.map((track) => make("option", { textContent: track.dataset.name })));
  choice.addEventListener("change", turn);
  tracks.forEach((track) => track.querySelector("h5").remove());
  player.querySelector("h4").after(choice);
  turn();
});
