// What the page does: after each change it asks `server.describe` for all that it shows, and draws that.
const one = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
// The fields are what a setting is in; a select without settings, such as that of the presets, has no place for an error.
const fields = all(".control :is(input:not([type=range]), select)[aria-describedby]");
const sliders = all("input[type=range]");
let kept = null; // the settings to compare with
let shown = null; // the last good answer

// Settings are what the fields say, and what a link holds.
const settings = () => Object.fromEntries(
  fields.filter(({ value, dataset }) => value.trim() && value !== dataset.default).map(({ id, value }) => [id, value.trim()]),
);
const query = (of) => new URLSearchParams(of).toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
const read = (text) => Object.fromEntries(new URLSearchParams(text));

function set(values) {
  for (const field of fields) field.value = values[field.id] ?? field.dataset.default ?? "";
  for (const slider of sliders) place(slider);
}

// A slider and the number beside it. Without a step it moves by powers, to numbers of two digits.
const field = (slider) => slider.parentElement.querySelector("input:not([type=range])");
const range = ({ dataset: { low, high, step, leftmost } }) => [Number(low), Number(high), Number(step ?? 0), leftmost];

function place(slider) {
  const [low, high, step] = range(slider);
  const text = field(slider).value || field(slider).placeholder, number = Number(text);
  const share = step ? (number - low) / (high - low) : Math.log(number / low) / Math.log(high / low);
  slider.value = text === "" || !(share > 0) ? 0 : slider.max * Math.min(1, share);
  slider.setAttribute("aria-valuetext", text || "not given");
}

function slide(slider) {
  const [low, high, step, leftmost] = range(slider), share = slider.value / slider.max;
  const number = step ? low + Math.round((share * (high - low)) / step) * step : low * (high / low) ** share;
  const rounded = Number(step ? number.toFixed(2) : number.toPrecision(2));
  field(slider).value = share === 0 ? leftmost ?? low : low >= 1 ? Math.round(rounded) : rounded;
  slider.setAttribute("aria-valuetext", field(slider).value || "not given");
}

// Ask, with one question on its way at a time, and the last one always asked.
let asking = false, again = false;
async function ask() {
  again = asking;
  if (asking) return;
  asking = true;
  const now = settings();
  writeLink(now);
  try {
    show(await server.describe(kept ? [now, kept] : [now]));
  } catch (error) {
    one(".note").textContent = `The server does not answer: ${error}`;
  }
  asking = false;
  if (again) ask();
}

function writeLink(now) {
  const theme = new URLSearchParams(location.search).get("__theme");
  const search = query({ ...now, ...(kept && { compare: query(kept) }), ...(theme && { __theme: theme }) });
  history.replaceState(null, "", `?${search}`);
  // Inside a Hugging Face Space, the address bar is that of the page around it.
  if (window.parent !== window) window.parent.postMessage({ queryString: search }, "https://huggingface.co");
}

function show(answer) {
  for (const error of all(".error")) error.textContent = "";
  for (const each of fields) each.removeAttribute("aria-invalid");
  one(".explorer").classList.toggle("stale", "error" in answer);
  if ("error" in answer) {
    const about = answer.argument ?? "num_training_steps";
    one(`#${about}-error`).textContent = answer.error;
    one(`#${about}`).setAttribute("aria-invalid", "true");
    return;
  }
  shown = answer;
  one(".note").textContent = answer.note ?? "";
  draw();
  const row = (cells, kind) => `<tr>${cells.map((cell) => `<${kind}>${cell}</${kind}>`).join("")}</tr>`;
  one(".cycles table").innerHTML = row(answer.columns, "th") + answer.rows.map((cells) => row(cells, "td")).join("");
  const kind = one(".code select");
  if (!kind.options.length) for (const name of Object.keys(answer.codes)) kind.add(new Option(name));
  one(".code code").textContent = answer.codes[kind.value];
}

// The picture.
const left = 52, right = 10, top = 8, bottom = 22;
let across, up;

function draw() {
  if (!shown) return;
  const box = one(".svg"), width = box.clientWidth, height = box.clientHeight;
  across = (step) => left + (step / shown.width) * (width - left - right);
  up = (rate) => height - bottom - (rate / shown.top) * (height - bottom - top);
  const { color } = getComputedStyle(element), colors = ["#3b82f6", "#e08a00"];
  const tag = (name, attributes, content = "") =>
    `<${name} ${Object.entries(attributes).map(([key, value]) => `${key}="${value}"`).join(" ")}>${content}</${name}>`;
  const area = ([from, to], fill, opacity) => tag("rect", {
    x: across(from), y: top, width: across(to) - across(from), height: up(0) - top, fill, "fill-opacity": opacity,
  });
  const line = (x1, y1, x2, y2, opacity, dashes) => tag("line", {
    x1, y1, x2, y2, stroke: color, "stroke-opacity": opacity, "stroke-dasharray": dashes,
  });
  const curve = ({ steps, rates }, index) => tag("polyline", {
    class: "curve", fill: "none", stroke: colors[index], "stroke-width": 2, "stroke-dasharray": index ? "7 4" : "none",
    points: steps.map((step, at) => `${across(step).toFixed(2)},${up(rates[at]).toFixed(2)}`).join(" "),
  });
  const x_ticks = shown.x_ticks.filter((_, index) => index % Math.ceil((60 * shown.x_ticks.length) / width) === 0);
  const anchor = (x) => (x < left + 30 ? "start" : x > width - 40 ? "end" : "middle");
  const [{ marks }] = shown.curves;
  const parts = [
    ...marks.warmup.map((mark) => area(mark, colors[0], 0.15)),
    ...marks.plateau.map((mark) => area(mark, "#808080", 0.2)),
    ...shown.y_ticks.map(([rate]) => line(left, up(rate), width - right, up(rate), 0.2, "none")),
    ...shown.y_ticks.map(([rate, text]) => tag("text", { x: left - 6, y: up(rate) + 4, "text-anchor": "end" }, text)),
    ...x_ticks.map(([step, text]) =>
      tag("text", { x: across(step), y: height - 6, "text-anchor": anchor(across(step)) }, text)),
    ...marks.restart.map(([step]) => line(across(step), top, across(step), up(0), 0.5, "4 3")),
    ...shown.curves.map(curve).reverse(),
  ];
  const peaks = `${shown.rows[0]?.[3] ?? 0} to ${shown.rows.at(-1)?.[3] ?? 0}`;
  box.innerHTML = tag("svg", {
    xmlns: "http://www.w3.org/2000/svg", width, height, role: "img", "font-family": "sans-serif", "font-size": 11, fill: color,
    "aria-label": `Learning rate over ${shown.width.toLocaleString("en")} steps: ${shown.rows.length} cycles, peaks from ${peaks}`,
  }, parts.join(""));
  const key = (mark, text) => `<span style="white-space: nowrap"><b aria-hidden="true">${mark}</b> ${text}</span> `;
  const colored = (color, mark) => `<span style="color: ${color}">${mark}</span>`;
  all(".legend > :not(.readout)").forEach((old) => old.remove());
  one(".legend").insertAdjacentHTML("beforeend", [
    key(colored(colors[0], "━"), "learning rate"),
    kept ? key(colored(colors[1], "╍"), "kept to compare") : "",
    marks.warmup.length ? key(colored(colors[0], "▒"), "warmup") : "",
    marks.plateau.length ? key(colored("#808080", "▒"), "plateau") : "",
    marks.restart.length ? key("┊", "restart") : "",
  ].join(""));
}

function readOut(event) {
  if (!shown) return;
  const { steps, rates } = shown.curves[0], x = event.clientX - one(".svg").getBoundingClientRect().left;
  let at = steps.findIndex((step) => across(step) >= x);
  if (at < 0) at = steps.length - 1;
  one(".readout").textContent = `step ${steps[at].toLocaleString("en")}: ${Number(rates[at].toPrecision(6))}`;
}

// What the buttons do.
const say = (button, text) => {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => (button.textContent = before), 1500);
};
const actions = {
  keep(button) {
    kept = kept ? null : settings();
    button.setAttribute("aria-pressed", String(kept !== null));
    button.textContent = kept ? "Stop comparing" : "Keep to compare";
    ask();
  },
  link: (button) => navigator.clipboard.writeText(location.href).then(() => say(button, "Copied")),
  copy: (button) => navigator.clipboard.writeText(one(".code code").textContent).then(() => say(button, "Copied")),
  picture() {
    const file = new Blob([one(".svg").innerHTML], { type: "image/svg+xml" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "schedule.svg" });
    link.click();
    URL.revokeObjectURL(link.href);
  },
};

function change({ target }) {
  if (target.matches(".code select")) return (one(".code code").textContent = shown.codes[target.value]);
  if (target.id === "preset") {
    if (target.value) set(read(target.value));
  } else {
    const slider = target.parentElement.querySelector("input[type=range]");
    one("#preset").value = "";
    if (target === slider) slide(slider);
    else if (slider) place(slider);
  }
  ask();
}
element.addEventListener("input", change);
for (const choice of all("select")) choice.addEventListener("change", change);
element.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button?.dataset.do) actions[button.dataset.do](button);
  if (button?.dataset.tab) {
    one(".explorer").dataset.tab = button.dataset.tab;
    for (const tab of all(".tabs button")) tab.setAttribute("aria-pressed", String(tab === button));
  }
});
one(".svg").addEventListener("pointermove", readOut);
new ResizeObserver(draw).observe(one(".svg"));

const { compare, __theme, ...linked } = read(location.search);
const preset = one("#preset").options[1].value;
set(Object.keys(linked).length ? linked : read(preset));
if (compare) {
  kept = read(compare);
  one("[data-do=keep]").setAttribute("aria-pressed", "true");
  one("[data-do=keep]").textContent = "Stop comparing";
}
ask();
