// Draws the diagrams, on pages that have any. Where mermaid cannot be loaded, their text stays, and all else works.
const diagrams = document.querySelectorAll("pre.diagram");

async function draw() {
  const dark = document.body.dataset.mdColorScheme === "slate";
  mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "default" });
  for (const [number, diagram] of diagrams.entries()) {
    const { svg } = await mermaid.render(`diagram-${number}`, diagram.textContent);
    const drawing = document.createElement("div");
    drawing.innerHTML = svg;
    diagram.replaceWith(drawing);
  }
}

if (diagrams.length) {
  const script = document.createElement("script");
  script.src = "https://unpkg.com/mermaid@11.17.2/dist/mermaid.min.js";
  script.integrity = "sha384-EOXBFmc3gx5mb+vn0vPvvGqACToJD24hhacX5Yx+8NUUQrHIle/Qi5Bg9o3zKwW2";
  script.crossOrigin = "anonymous";
  script.onload = draw;
  document.head.append(script);
}
