'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const SVG = 'http://www.w3.org/2000/svg';
function add(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
// whole windows from the least important end, as windows/assignment.py counts them
const lowCount = (windows, hundredths) => Math.floor(windows * hundredths / 100);

function drawMaps(root) {
  const painted = [];
  for (const image of data.maps) {
    const figure = document.createElement('figure');
    const grid = document.createElement('div');
    grid.className = 'maps';
    for (const stage of image.stages) {
      const holder = document.createElement('div');
      const [height, width] = image.size;
      const svg = add(holder, 'svg', { viewBox: `0 0 ${width} ${height}`, role: 'img' });
      add(svg, 'image', { href: image.uri, width, height });
      const stride = Math.max(Math.ceil(height / stage.tokens[0]), Math.ceil(width / stage.tokens[1]));
      const side = stride * stage.window;
      const columns = Math.ceil(stage.tokens[1] / stage.window);
      const rects = stage.order.map((_, window) => add(svg, 'rect', {
        x: (window % columns) * side, y: Math.floor(window / columns) * side, width: side, height: side,
        stroke: '#fff', 'stroke-opacity': 0.6, 'stroke-width': width / 400, fill: '#E69F00', 'fill-opacity': 0 }));
      const label = document.createElement('span');
      holder.appendChild(label);
      grid.appendChild(holder);
      painted.push({ stage, rects, label });
    }
    const caption = document.createElement('figcaption');
    caption.textContent = image.name;
    figure.append(caption, grid);
    root.appendChild(figure);
  }
  return hundredths => painted.forEach(({ stage, rects, label }) => {
    const high = stage.order.length - lowCount(stage.order.length, hundredths);
    stage.order.forEach((window, rank) => rects[window].setAttribute('fill-opacity', rank < high ? 0 : 0.55));
    label.textContent = `stage ${stage.stage}: ${stage.order.length - high} of ${stage.order.length} windows low`;
  });
}

function drawFront(root) {
  const points = data.front;
  if (!points.length) return;
  const [W, H, left, bottom] = [680, 340, 60, 45];
  const svg = add(root, 'svg', { viewBox: `0 0 ${W} ${H}`, role: 'img' });
  const range = key => {
    const values = points.map(point => point[key]);
    const margin = (Math.max(...values) - Math.min(...values)) * 0.08 || 0.05;
    return [Math.min(...values) - margin, Math.max(...values) + margin];
  };
  const [x0, x1] = range('cost'), [y0, y1] = range('ap');
  const x = v => left + (v - x0) / (x1 - x0) * (W - left - 15), y = v => H - bottom - (v - y0) / (y1 - y0) * (H - bottom - 25);
  for (let i = 0; i <= 4; i++) {
    const vx = x0 + (x1 - x0) * i / 4, vy = y0 + (y1 - y0) * i / 4;
    add(svg, 'line', { x1: left, x2: W - 15, y1: y(vy), y2: y(vy), stroke: '#ddd' });
    // the two labels at the corner keep apart
    add(svg, 'text', { x: left - 6, y: y(vy) + (i ? 4 : 0), 'text-anchor': 'end' }, vy.toFixed(1));
    add(svg, 'text', { x: x(vx), y: H - bottom + 19, 'text-anchor': i ? 'middle' : 'start' }, vx.toFixed(2));
  }
  add(svg, 'text', { x: (W + left) / 2, y: H - 8, 'text-anchor': 'middle' }, 'relative bit operations (all windows high = 1)');
  add(svg, 'text', { transform: `translate(14 ${H / 2}) rotate(-90)`, 'text-anchor': 'middle' }, data.quality);
  const note = document.createElement('p');
  note.id = 'hovered';
  note.textContent = 'Point at a circle for its ratios.';
  for (const point of points) {
    const circle = add(svg, 'circle', { cx: x(point.cost), cy: y(point.ap), r: 6, fill: '#0072B2', tabindex: 0 });
    const text = `${data.quality} ${point.ap.toFixed(2)}, relative cost ${point.cost.toFixed(3)}, low [${point.low}], pruned [${point.prune}]`;
    add(circle, 'title', {}, text);
    for (const event of ['mouseenter', 'focus']) circle.addEventListener(event, () => { note.textContent = text; });
  }
  root.appendChild(note);
}

const maps = document.getElementById('maps');
if (maps) {
  const paint = drawMaps(maps), slider = document.getElementById('ratio'), shown = document.getElementById('shown');
  const update = () => { shown.textContent = `low ratio ${(slider.value / 100).toFixed(2)}`; paint(Number(slider.value)); };
  slider.addEventListener('input', update);
  update();
}
const front = document.getElementById('front');
if (front) drawFront(front);
