const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll(".figure")];

function paint() {
  if (!window.Plotly) return;
  const color = getComputedStyle(document.body).color;
  for (const plot of plots) if (plot.layout) Plotly.relayout(plot, {"font.color": color});
}

document.getElementById("look").addEventListener("click", () => {
  const now = root.style.colorScheme || (dark.matches ? "dark" : "light");
  root.style.colorScheme = now === "dark" ? "light" : "dark";
  paint();
});
dark.addEventListener("change", paint);

async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function draw() {
  const [code, figures] = await Promise.all(["plotly", "figures"].map(unpacked));
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
  const color = getComputedStyle(document.body).color;
  JSON.parse(figures).forEach(({data, layout}, i) => {
    layout.font = {...layout.font, color, size: innerWidth < 640 ? 10 : 12};
    Plotly.newPlot(plots[i], data, layout, {responsive: true, displaylogo: false, displayModeBar: "hover"});
  });
}

if (plots.length) draw().catch((error) => {
  for (const plot of plots) plot.textContent = `This browser does not draw the figure: ${error}`;
});
