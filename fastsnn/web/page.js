"use strict";
// One test image on its way through the network. #activity holds its spikes, which report.py packed; #time says at
// which time step we are, and all that is drawn here follows from it.

const activity = JSON.parse(document.getElementById("activity").textContent);
const slider = document.getElementById("time");
const raster = document.getElementById("raster");
const T = activity.potential.length;

// Left of the raster there is room for what layers and classes are called.
const LEFT = activity.classes.some((name) => name.length > 3) ? 128 : 100;
const GAP = 14; // between layers
const AXIS = 40; // below them

/** (t, neuron) -> 0 or 1. */
function reader(layer) {
  const bytes = Uint8Array.from(atob(layer.spikes), (character) => character.charCodeAt(0));
  return (t, neuron) => {
    const bit = t * layer.size + neuron;
    return (bytes[bit >> 3] >> (7 - (bit & 7))) & 1;
  };
}

const spikes = activity.layers.map(reader);
const pixels = activity.image.flat();
const output = activity.layers.length - 1;

/** Where each layer is drawn, and which of its neurons have a row, from top to bottom. */
const bands = [];
let height = 0;
activity.layers.forEach((layer, i) => {
  const rows = [...Array(layer.size).keys()].filter((neuron) => i > 0 || pixels[neuron] > 0);
  const band = { rows, top: height + (i && GAP), height: i === output ? 14 * rows.length : i ? 110 : 160 };
  bands.push(band);
  height = band.top + band.height;
});

/** counts[t][neuron]: spikes of the output neurons up to and including step t. */
const counts = [];
for (let t = 0; t < T; t++) {
  counts.push(activity.classes.map((_, neuron) => (t ? counts[t - 1][neuron] : 0) + spikes[output](t, neuron)));
}

/** A colour of page.css, which depends on the colour scheme. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

// Every spike, drawn once for each width and colour scheme; a step shows this picture, what is still to come fainter.
const picture = document.createElement("canvas");

function prepare() {
  const scale = window.devicePixelRatio;
  raster.style.height = `${height + AXIS}px`;
  for (const canvas of [picture, raster]) {
    canvas.width = Math.round(raster.clientWidth * scale);
    canvas.height = Math.round((height + AXIS) * scale);
    canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  }
  const context = picture.getContext("2d");
  const step = stepWidth();
  bands.forEach(({ rows, top, height: size }, i) => {
    const pitch = size / rows.length;
    const mark = Math.max(1, pitch * 0.8);
    rows.forEach((neuron, row) => {
      context.fillStyle = colour(i === output && neuron === activity.label ? "label" : "data");
      for (let t = 0; t < T; t++) {
        if (spikes[i](t, neuron)) context.fillRect(LEFT + t * step, top + row * pitch, Math.max(0.5, step * 0.7), mark);
      }
    });
  });
  show();
}

function stepWidth() {
  return (raster.clientWidth - LEFT) / T;
}

function show() {
  const t = Number(slider.value);
  document.getElementById("now").textContent = `step ${t} of ${T - 1}`;
  showRaster(t);
  showImages(t);
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
  context.font = `13px ${getComputedStyle(document.body).fontFamily}`;
  context.fillStyle = colour("ink");
  context.textAlign = "right";
  context.textBaseline = "middle";
  bands.forEach(({ rows, top, height: size }, i) => {
    const { name } = activity.layers[i];
    if (i === output) {
      const pitch = size / rows.length;
      rows.forEach((neuron) => {
        context.fillStyle = colour(neuron === activity.label ? "label" : "ink");
        const text = neuron === activity.label ? `label ${activity.classes[neuron]}` : activity.classes[neuron];
        context.fillText(text, LEFT - 8, top + (neuron + 0.5) * pitch);
      });
    } else {
      context.fillText(name, LEFT - 8, top + size / 2 - 9);
      context.fillText(`${rows.length} ${i === 0 ? "lit pixels" : "neurons"}`, LEFT - 8, top + size / 2 + 9);
    }
  });
  context.fillStyle = colour("faint");
  context.textAlign = "center";
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((size) => size * step >= 50) ?? 1000;
  for (let t = 0; t < T; t += every) context.fillText(t, LEFT + (t + 0.5) * step, height + 12);
  context.fillText("time step", LEFT + (width - LEFT) / 2, height + 30);
}

function showImages(t) {
  paint("spikes", (pixel) => (spikes[0](t, pixel) ? 255 : pixels[pixel] * 0.2));
  paint("mean", (pixel) => {
    let sum = 0;
    for (let past = 0; past <= t; past++) sum += spikes[0](past, pixel);
    return (255 * sum) / (t + 1);
  });
}

/** Fill the canvas `id`, of the image's size, with grey levels from 0 to 255. */
function paint(id, level) {
  const canvas = document.getElementById(id);
  [canvas.height, canvas.width] = [activity.image.length, activity.image[0].length];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < pixels.length; pixel++) {
    const grey = level(pixel);
    image.data.set([grey, grey, grey, 255], 4 * pixel);
  }
  context.putImageData(image, 0, 0);
}

const table = activity.classes.map((name, neuron) => {
  const row = document.querySelector("#output tbody").insertRow();
  const roles = [neuron === activity.label && "label", neuron === activity.prediction && "predicted"].filter(Boolean);
  row.className = neuron === activity.label ? "label" : "";
  row.insertCell().textContent = [name, ...roles].join(" ");
  const [potential, count] = [row.insertCell(), row.insertCell()];
  const [bar, number] = [document.createElement("span"), document.createElement("span")];
  bar.className = "bar";
  count.append(bar, number);
  return { potential, bar, number };
});

function showOutput(t) {
  table.forEach(({ potential, bar, number }, neuron) => {
    const fires = spikes[output](t, neuron);
    potential.textContent = activity.potential[t][neuron].toFixed(2) + (fires ? " fires" : "");
    potential.className = fires ? "fires" : "";
    number.textContent = counts[t][neuron];
    bar.style.width = `${(100 * counts[t][neuron]) / T}px`;
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
  play.textContent = "Play";
}

play.addEventListener("click", () => {
  if (timer !== null) return stop();
  if (Number(slider.value) === T - 1) moveTo(0);
  play.textContent = "Pause";
  timer = setInterval(() => {
    moveTo(Number(slider.value) + 1);
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

// An observer is called at once as well: that is the first drawing.
new ResizeObserver(prepare).observe(raster.parentElement);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", prepare);
