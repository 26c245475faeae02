// What is wrong with the page that is shown, in words; run by test_report_browser.py.
const wrong = { contrast: [], overflow: [], overlap: [], figures: [], series: [], size: [] };

function channels(text) {
  const found = text.match(/[\d.]+/g);
  return found ? found.map(Number).concat(1).slice(0, 4) : [0, 0, 0, 0];
}

function over(top, below) {
  const a = top[3];
  return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)).concat(1);
}

// WCAG 2.2, "relative luminance" and "contrast ratio".
function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map((value) => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function ratio(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

function background(element) {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    layers.push(channels(getComputedStyle(at).backgroundColor));
  }
  // What the browser paints under a page that paints nothing.
  const dark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
  return layers.reverse().reduce((below, top) => over(top, below), dark ? [18, 18, 18, 1] : [255, 255, 255, 1]);
}

function opacity(element) {
  let whole = 1;
  for (let at = element; at; at = at.parentElement) whole *= Number(getComputedStyle(at).opacity);
  return whole;
}

function texts(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.textContent.trim() || ["STYLE", "SCRIPT", "TITLE"].includes(parent.tagName)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter((box) => box.width > 1 && box.height > 1);
    if (boxes.length && getComputedStyle(parent).visibility === "visible") found.push({ node, parent, boxes });
  }
  return found;
}

function cut(element) {
  for (let at = element; at && at !== document.body; at = at.parentElement) {
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(at).overflowX)) return true;
  }
  return false;
}

document.querySelectorAll("details").forEach((one) => { if (!matchMedia("print").matches) one.open = true; });
const shown = texts(document.body);
for (const { node, parent, boxes } of shown) {
  const words = node.textContent.trim().slice(0, 40), style = getComputedStyle(parent);
  const drawn = parent.closest("svg") !== null;
  const paint = channels(drawn ? style.fill : style.color);
  const below = background(parent);
  paint[3] *= opacity(parent);
  const found = ratio(over(paint, below), below);
  if (found < 4.5) wrong.contrast.push(`${words}: ${found.toFixed(2)}`);
  if (parseFloat(style.fontSize) < 9 && !drawn && !matchMedia("print").matches) wrong.size.push(words);
  const right = Math.max(...boxes.map((box) => box.right)), left = Math.min(...boxes.map((box) => box.left));
  if ((right > innerWidth + 1 || left < -1) && !cut(parent)) wrong.overflow.push(`${words}: ${left} to ${right}`);
}
if (document.documentElement.scrollWidth > innerWidth) {
  wrong.overflow.push(`the page is ${document.documentElement.scrollWidth} wide`);
}

// Text that lies on other text of its figure, or beyond the figure's edge.
for (const svg of document.querySelectorAll("figure svg")) {
  const inside = texts(svg).map(({ node, boxes }) => ({ words: node.textContent.trim(), box: boxes[0] }));
  const edge = svg.getBoundingClientRect();
  inside.forEach(({ words, box }, i) => {
    if (box.left < edge.left - 2 || box.right > edge.right + 2 || box.top < edge.top - 2 || box.bottom > edge.bottom + 2) {
      wrong.overlap.push(`${words} leaves its figure`);
    }
    for (const other of inside.slice(i + 1)) {
      const wide = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
      const high = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
      if (wide > 1 && high > 3) wrong.overlap.push(`${words} lies on ${other.words}`);
    }
  });
}

for (const figure of document.querySelectorAll("figure")) {
  const name = figure.getAttribute("aria-label") || "";
  if (figure.getAttribute("role") !== "img" || name.length < 10) wrong.figures.push(`no alternative: ${name}`);
  const drawn = [...figure.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().width > 0);
  if (drawn.length !== 1) wrong.figures.push(`${drawn.length} drawings: ${name}`);
  if (drawn.some((svg) => svg.querySelectorAll("path").length < 3)) wrong.figures.push(`empty: ${name}`);
}
document.querySelectorAll("svg").forEach((svg) => { if (!svg.closest("figure")) wrong.figures.push("a drawing outside"); });

// Of two colours that carry data in one figure no line, marker or area may look the same in grey.
function looks(svg) {
  const names = ["blue", "orange", "green", "purple", "violet", "brown", "lake", "olive"];
  const found = new Map();
  const note = (colour, look) => {
    if (!found.has(colour)) found.set(colour, new Set());
    found.get(colour).add(look);
  };
  for (const element of svg.querySelectorAll("path, use")) {
    const style = element.getAttribute("style") || "";
    if (element.closest("defs, clipPath, pattern")) continue;
    for (const name of names) {
      if (!style.includes(`var(--${name})`)) continue;
      if (element.tagName === "use") {
        note(name, `marker ${document.querySelector(element.getAttribute("href"))?.getAttribute("d")}`);
      } else if (style.includes("url(")) note(name, "area of a pattern");
      else if (style.includes(`fill: var(--${name})`)) note(name, `area ${/opacity: [\d.]+/.exec(style) || ""}`);
      else if (!/opacity/.test(style)) note(name, `line ${/stroke-dasharray: [\d., ]+/.exec(style) || ""}`);
    }
  }
  return [...found];
}
for (const svg of document.querySelectorAll("svg")) {
  const found = looks(svg);
  found.forEach(([colour, mine], i) => {
    for (const [other, theirs] of found.slice(i + 1)) {
      const same = [...mine].filter((look) => theirs.has(look));
      if (same.length) wrong.series.push(`${colour} and ${other}: ${same.join(", ")}`);
    }
  });
}
return { wrong, texts: shown.length, figures: document.querySelectorAll("figure").length, width: innerWidth };
