// Lines over the last minute.

const MINUTE = 60_000;

// Adds what was measured at a time, and drops what is older than the chart is wide.
export function push(list, at, y) {
  list.push({ at, y });
  while (list.length > 2 && list[1].at < at - MINUTE) list.shift();
}

// Draws a list with its latest point at the right edge; `most` is as high as the chart.
export function draw(svg, list, most) {
  const now = list.at(-1).at;
  const x = (point) => (300 - (300 * (now - point.at)) / MINUTE).toFixed(1);
  const points = list.map((point) => `${x(point)},${(58 - (54 * point.y) / most).toFixed(1)}`);
  svg.querySelector("polyline").setAttribute("points", points.join(" "));
  svg.querySelector("polygon").setAttribute("points", [`${x(list[0])},60`, ...points, "300,60"].join(" "));
}
