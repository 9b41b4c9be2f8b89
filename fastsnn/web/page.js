"use strict";
// One sample on its way through the network. #activity holds its spikes, which page_data.py packed; #time says at which
// time step we are, and all that is drawn here follows from it.

const activity = JSON.parse(document.getElementById("activity").textContent);
const { T, classes, words } = activity;
const slider = document.getElementById("time");
const raster = document.getElementById("raster");

const GAP = 10; // between layers
const HEAD = 20; // for a layer's name, above it
const AXIS = 40; // below them
let LEFT = 0; // of them, for the names of classes

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** (t, neuron) -> from 0 to 1: a spike or none, or a number in its range. */
function reader({ kind, data, size }) {
  const bytes = bytesOf(data);
  if (kind === "levels") return (t, neuron) => bytes[t * size + neuron] / 255;
  return (t, neuron) => {
    const bit = t * size + neuron;
    return (bytes[bit >> 3] >> (7 - (bit & 7))) & 1;
  };
}

const values = activity.layers.map(reader);
const output = activity.layers.length - 1;
const fires = activity.layers[output].kind === "spikes";

/** The class that is right at a step, and the one that is answered; null for none. */
const labelAt = (t) => (activity.labels ? activity.labels[t] : activity.label);
const answerAt = (t) => (activity.predictions ? activity.predictions[t] : activity.prediction);

/** Where each layer is drawn, from top to bottom. */
const bands = [];
let height = 0;
activity.layers.forEach((layer, i) => {
  const top = height + HEAD + (i && GAP);
  const size = i === output ? 14 * layer.size : Math.min(i ? 110 : 150, Math.max(16, 8 * layer.size));
  bands.push({ rows: [...Array(layer.size).keys()], top, height: size });
  height = top + size;
});

/** counts[t][neuron]: spikes of the output neurons up to and including step t. */
const counts = [];
for (let t = 0; t < T && fires; t++) {
  counts.push(classes.map((_, neuron) => (t ? counts[t - 1][neuron] : 0) + values[output](t, neuron)));
}

/** A colour of page.css, which depends on the colour scheme. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

// Every spike, drawn once for each width and colour scheme; a step shows this picture, what is still to come fainter.
const picture = document.createElement("canvas");

function prepare() {
  if (!raster.clientWidth) return; // not laid out yet
  const scale = window.devicePixelRatio;
  raster.style.height = `${height + AXIS}px`;
  for (const canvas of [picture, raster]) {
    canvas.width = Math.round(raster.clientWidth * scale);
    canvas.height = Math.round((height + AXIS) * scale);
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }
  const context = picture.getContext("2d");
  context.font = fontOf(12);
  LEFT = 14 + Math.max(...classes.map((name, neuron) => context.measureText(rowName(name, neuron)).width));
  const step = stepWidth();
  bands.forEach((band, i) => drawBand(context, band, i, step));
  show();
}

function drawBand(context, { rows, top, height: size }, i, step) {
  const pitch = size / rows.length;
  const mark = Math.max(1, pitch * 0.8);
  const solid = activity.layers[i].kind === "levels";
  const width = solid ? step + 0.5 : Math.min(6, Math.max(0.5, step * 0.7));
  rows.forEach((neuron, row) => {
    for (let t = 0; t < T; t++) {
      const value = values[i](t, neuron);
      if (!value) continue;
      context.fillStyle = colours[i === output && neuron === labelAt(t) ? "label" : "data"];
      context.globalAlpha = value;
      context.fillRect(LEFT + (t + 0.5) * step - width / 2, top + row * pitch, width, solid ? pitch : mark);
    }
  });
  context.globalAlpha = 1;
}

const fontOf = (size) => `${size}px ${getComputedStyle(document.body).fontFamily}`;
const rowName = (name, neuron) => (neuron === activity.label ? `${words.label} ${name}` : name);

function stepWidth() {
  return (raster.clientWidth - LEFT) / T;
}

function show() {
  const t = Number(slider.value);
  document.getElementById("now").textContent = words["step {t} of {last}"].replace("{t}", t).replace("{last}", T - 1);
  showRaster(t);
  if (activity.frames) showImages(t);
  showOutput(t);
}

function showRaster(t) {
  const context = raster.getContext("2d");
  const [width, step] = [raster.clientWidth, stepWidth()];
  const end = LEFT + (t + 1) * step;
  context.clearRect(0, 0, width, height + AXIS);
  context.globalAlpha = 0.2;
  context.drawImage(picture, 0, 0, width, height + AXIS);
  context.globalAlpha = 1;
  context.save();
  context.beginPath();
  context.rect(0, 0, end, height);
  context.clip();
  context.clearRect(0, 0, end, height);
  context.drawImage(picture, 0, 0, width, height + AXIS);
  context.restore();
  context.fillStyle = colour("ink");
  context.fillRect(end - 1, 0, 1.5, height);
  writeLabels(context, width, step);
}

function writeLabels(context, width, step) {
  context.textBaseline = "middle";
  bands.forEach(({ rows, top, height: size }, i) => {
    const { name, note } = activity.layers[i];
    context.font = fontOf(12);
    context.textAlign = "left";
    context.fillStyle = colour("faint");
    context.fillText(note ? `${name}: ${note}` : name, 0, top - HEAD / 2);
    if (i !== output) return;
    context.textAlign = "right";
    rows.forEach((neuron) => {
      context.fillStyle = colour(neuron === activity.label ? "label" : "ink");
      context.fillText(rowName(classes[neuron], neuron), LEFT - 6, top + ((neuron + 0.5) * size) / rows.length);
    });
  });
  context.fillStyle = colour("faint");
  context.textAlign = "center";
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((size) => size * step >= 50) ?? 2000;
  for (let t = 0; t < T; t += every) context.fillText(t, LEFT + (t + 0.5) * step, height + 12);
  context.fillText(words["time step"], LEFT + (width - LEFT) / 2, height + 30);
}

const frames = activity.frames && { ...activity.frames, size: activity.frames.height * activity.frames.width };
const inputAt = frames && reader({ ...frames, kind: "spikes" });
const still = frames?.still && bytesOf(frames.still);
const sums = frames && new Float32Array(frames.size);
let summed = -1; // the last step that is in sums

function showImages(t) {
  paint("spikes", (pixel) => (inputAt(t, pixel) ? 255 : still ? still[pixel] * 0.2 : 0));
  if (t < summed) {
    sums.fill(0);
    summed = -1;
  }
  for (; summed < t; summed++) {
    for (let pixel = 0; pixel < frames.size; pixel++) sums[pixel] += inputAt(summed + 1, pixel);
  }
  const full = still ? t + 1 : Math.max(1, ...sums); // events are rare: the busiest pixel is white
  paint("mean", (pixel) => (255 * sums[pixel]) / full);
}

/** Fill the canvas `id`, of the image's size, with grey levels from 0 to 255. */
function paint(id, level) {
  const canvas = document.getElementById(id);
  [canvas.height, canvas.width] = [frames.height, frames.width];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < frames.size; pixel++) {
    const grey = level(pixel);
    image.data.set([grey, grey, grey, 255], 4 * pixel);
  }
  context.putImageData(image, 0, 0);
}

const table = classes.map(() => {
  const row = document.querySelector("#output tbody").insertRow();
  const [name, potential] = [row.insertCell(), row.insertCell()];
  if (!fires) return { row, name, potential };
  const [bar, number] = [document.createElement("span"), document.createElement("span")];
  bar.className = "bar";
  row.insertCell().append(bar, number);
  return { row, name, potential, bar, number };
});

function showOutput(t) {
  table.forEach(({ row, name, potential, bar, number }, neuron) => {
    const roles = [neuron === labelAt(t) && words.label, neuron === answerAt(t) && words.predicted].filter(Boolean);
    name.textContent = [classes[neuron], ...roles].join(" ");
    row.className = neuron === labelAt(t) ? "label" : "";
    const fired = fires && values[output](t, neuron);
    potential.textContent = activity.potential[t][neuron].toFixed(2) + (fired ? ` ${words.fires}` : "");
    potential.className = fired ? "fires" : "";
    if (!fires) return;
    number.textContent = counts[t][neuron];
    bar.style.width = `${(80 * counts[t][neuron]) / T}px`;
  });
}

function moveTo(t) {
  slider.value = t;
  show();
}

const play = document.getElementById("play");
let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = words.Play;
}

play.addEventListener("click", () => {
  if (timer !== null) return stop();
  if (Number(slider.value) === T - 1) moveTo(0);
  play.textContent = words.Pause;
  const every = Math.max(1, Math.ceil(T / 300)); // steps at a time, so that a long sample doesn't take minutes
  timer = setInterval(() => {
    moveTo(Math.min(T - 1, Number(slider.value) + every));
    if (Number(slider.value) === T - 1) stop();
  }, Math.max(20, 6000 / T));
});

slider.addEventListener("input", () => {
  stop();
  show();
});

for (const name of ["pointerdown", "pointermove"]) {
  raster.addEventListener(name, (event) => {
    if (!event.buttons) return;
    stop();
    moveTo(Math.floor((event.offsetX - LEFT) / stepWidth()));
  });
}

// Colours of canvases don't follow the scheme by themselves; on paper it is light.
const colours = {};
function repaint() {
  for (const name of ["data", "label"]) colours[name] = colour(name);
  prepare();
}
addEventListener("beforeprint", () => {
  document.documentElement.dataset.print = "";
  repaint();
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.print;
  repaint();
});

// An observer is called at once as well: that is the first drawing.
new ResizeObserver(repaint).observe(raster.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
