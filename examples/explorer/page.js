// What the page does: after each change it asks `server.describe` for all that it shows.
const one = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];
// The fields hold the settings; beside each is the place for an error about it.
const fields = all("[aria-describedby]");
const sliders = all("[type=range]");
const read = (text) => Object.fromEntries(new URLSearchParams(text));
const query = (of) => new URLSearchParams(of).toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
const initial = read(one("#preset").options[1].value);
let kept = null; // the settings to compare with
let run = null; // the learning rates that a run logged
let shown = null; // the last answer without an error, and what was asked for it

const settings = () => Object.fromEntries(
  fields.filter(({ value, dataset }) => value.trim() && value !== dataset.default).map(({ id, value }) => [id, value.trim()]),
);

function set(values) {
  for (const field of fields) field.value = values[field.id] ?? field.dataset.default ?? "";
  for (const slider of sliders) place(slider);
}

// A slider and the number beside it.
const stops = (slider) => slider.dataset.stops.split(" ");
const plain = (text) => Number(text.replaceAll(",", ""));

function place(slider) {
  const { value, placeholder } = slider.nextElementSibling, text = value || placeholder;
  const position = stops(slider).findLastIndex((stop) => stop && text && Number(stop) <= plain(text));
  slider.value = Math.max(0, position);
  slider.setAttribute("aria-valuetext", text || "not given");
}

function slide(slider) {
  slider.nextElementSibling.value = stops(slider)[slider.value];
  place(slider);
}

// The optimizer updates of a Trainer: the last ones of an epoch may have fewer batches.
function countSteps() {
  const [epochs, batches, accumulation] = all("[data-of]").map(({ value }) => plain(value));
  const steps = Math.ceil(epochs * Math.ceil(batches / accumulation));
  if (steps > 0 && steps < Infinity) set({ ...settings(), num_training_steps: steps });
}

// Ask, with one question on its way at a time, and the last one always asked.
let asking = false, again = false;
async function ask() {
  again = asking;
  if (asking) return;
  asking = true;
  const { clientWidth, clientHeight } = one(".svg");
  const asked = { settings: settings(), kept, run, size: [clientWidth, clientHeight] };
  one("[data-do=keep]").textContent = kept ? "Stop comparing" : "Keep to compare";
  one("[data-do=run]").textContent = run ? "Remove logged run" : "Import trainer_state.json";
  writeLink(asked.settings);
  try {
    show(asked, await server.describe(asked));
  } catch (error) {
    one(".notes").textContent = `The server does not answer: ${error}`;
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

function show(asked, answer) {
  for (const error of all(".error")) error.textContent = "";
  for (const each of fields) each.removeAttribute("aria-invalid");
  one(".explorer").classList.toggle("stale", "error" in answer);
  one(".notes").textContent = answer.notes?.join("\n") ?? "";
  if ("error" in answer) {
    const about = answer.argument ?? "num_training_steps";
    one(`#${about}-error`).textContent = answer.error;
    one(`#${about}`).setAttribute("aria-invalid", "true");
    return;
  }
  shown = { asked, ...answer };
  one(".svg").innerHTML = answer.picture;
  one(".svg").setAttribute("aria-label", answer.description);
  const row = (cells, kind) => `<tr>${cells.map((cell) => `<${kind}>${cell}</${kind}>`).join("")}</tr>`;
  const rows = row(answer.columns, "th") + answer.rows.map((cells) => row(cells, "td")).join("");
  one(".cycles table").innerHTML = `<caption>${answer.more}</caption>${rows}`;
  showCode();
}

const showCode = () => (one(".code code").textContent = shown.codes[one(".code select").value]);

function readOut(event) {
  if (!shown) return;
  const { across: [left, right, first, last], steps, rates } = shown, box = one(".svg").getBoundingClientRect();
  const step = first + (((event.clientX - box.left) / box.width - left) / (right - left)) * (last - first);
  let at = steps.findIndex((each) => each >= step);
  if (at < 0) at = steps.length - 1;
  one(".readout").textContent = `step ${steps[at].toLocaleString("en")}: ${Number(rates[at].toPrecision(6))}`;
}

// What the buttons do.
const say = (button, text) => {
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => (button.textContent = before), 1500);
};
const save = async (form) => {
  const href = await server.download({ ...shown.asked, form });
  Object.assign(document.createElement("a"), { href, download: `schedule.${form}` }).click();
};
const actions = {
  keep() {
    kept = kept ? null : settings();
    ask();
  },
  run() {
    if (!run) return one("#run").click();
    run = null;
    ask();
  },
  svg: () => save("svg"),
  png: () => save("png"),
  link: (button) => navigator.clipboard.writeText(location.href).then(() => say(button, "Copied")),
  copy: (button) => navigator.clipboard.writeText(one(".code code").textContent).then(() => say(button, "Copied")),
  reset() {
    kept = run = null;
    one("#preset").value = "";
    for (const field of all("[data-of]")) field.value = field.defaultValue;
    set(initial);
    ask();
  },
};

async function importRun(input) {
  const [file] = input.files;
  const answer = await server.read_run({ name: file.name, text: await file.text() });
  input.value = ""; // so that the same file can be chosen again
  run = answer.run ?? null;
  await ask();
  one("#run-error").textContent = answer.error ?? "";
}

function change({ target }) {
  if (target.id === "run") return importRun(target);
  if (target.matches(".code select")) return showCode();
  if (target.id === "preset") {
    if (target.value) set({ yscale: one("#yscale").value, ...read(target.value) });
  } else {
    one("#preset").value = "";
    if (target.dataset.of) countSteps();
    else if (target.dataset.stops) slide(target);
    else sliders.forEach(place);
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

const { compare, __theme, ...linked } = read(location.search);
set(Object.keys(linked).length ? linked : initial);
if (compare) kept = read(compare);
new ResizeObserver(ask).observe(one(".svg")); // the first picture too
// The picture stays in sight: what is focused is to lie below it.
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.scrollPaddingTop = `${target.offsetHeight + 8}px`;
}).observe(one(".picture"));
