// The page's own script. A chart gets its data from the table under it, so that both say the same.
const charts = [];
const root = document.documentElement;
const configs = JSON.parse(document.getElementById("configs").textContent);

function value(kind, text) {
  if (text === "–") return null;
  if (kind === "number") return Number(text);
  return kind === "numbers" ? text.split(" ").map(Number) : text;
}

function rows(table) {
  const columns = [...table.tHead.rows[0].cells].map((cell) => [cell.textContent, cell.dataset.kind]);
  return [...table.tBodies[0].rows].map((row) =>
    Object.fromEntries(columns.map(([name, kind], i) => [name, value(kind, row.cells[i].textContent)])));
}

// What is singled out is the same everywhere on the page: in charts, tables and fields.
const picked = {};

function pick(column, name) {
  if ((picked[column] ?? null) === name) return;
  picked[column] = name;
  for (const chart of charts) if (chart.column === column) chart.pick(name);
  for (const row of document.querySelectorAll(`tr[data-column="${column}"]`))
    row.classList.toggle("picked", name !== null && row.dataset.name === name);
  for (const field of document.querySelectorAll(`input[data-column="${column}"]`)) field.value = name ?? "";
  for (const box of document.querySelectorAll(".scroll")) {
    const row = box.querySelector("tr.picked");
    if (row) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  }
}

class Chart {
  constructor(figure) {
    this.place = figure.querySelector(".chart");
    this.column = figure.dataset.pick || null;
    this.spec = JSON.parse(figure.querySelector("script").textContent);
    this.spec.data = { values: rows(figure.parentElement.querySelector("table")) };
  }

  async draw() {
    this.view?.finalize();
    // `ast`: expressions are interpreted, so that no text becomes code and the policy of the page can be strict.
    const { view } = await vegaEmbed(this.place, this.spec, {
      actions: false, ast: true, defaultStyle: false, renderer: "svg", config: configs[root.dataset.theme],
      tooltip: { disableDefaultStyle: true },
    });
    this.view = view;
    if (!this.column) return;
    if (picked[this.column]) await this.pick(picked[this.column]);
    view.addSignalListener("picked", (_, found) => pick(this.column, found[this.column]?.[0] ?? null));
  }

  async pick(name) {
    if (!this.view || (this.view.signal("picked")[this.column]?.[0] ?? null) === name) return;
    const fields = this.view.signal("picked_tuple_fields");
    this.view.signal("picked_toggle", false);
    this.view.signal("picked_tuple", name === null ? null : { unit: "", fields, values: [name] });
    await this.view.runAsync();
  }
}

function theme(name) {
  root.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light page" : "Dark page";
}

async function draw() {
  for (const chart of charts) await chart.draw();
  root.dataset.drawn = root.dataset.theme;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
theme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => { theme(dark.matches ? "dark" : "light"); draw(); });
document.getElementById("theme").addEventListener("click", () => {
  theme(root.dataset.theme === "dark" ? "light" : "dark");
  draw();
});
for (const field of document.querySelectorAll("input[data-column]")) {
  const known = new Set([...document.getElementById(field.getAttribute("list")).options].map((o) => o.value));
  const said = () => { if (known.has(field.value) || !field.value) pick(field.dataset.column, field.value || null); };
  field.addEventListener("input", said);
  field.addEventListener("keydown", (event) => { if (event.key === "Escape") pick(field.dataset.column, null); });
}
for (const row of document.querySelectorAll("tr[data-name]"))
  row.addEventListener("click", () => {
    if (getSelection().toString()) return; // of somebody who copies
    pick(row.dataset.column, picked[row.dataset.column] === row.dataset.name ? null : row.dataset.name);
  });
for (const figure of document.querySelectorAll("figure")) charts.push(new Chart(figure));
draw();
