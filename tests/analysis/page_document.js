// node page_document.js FOLDER ID ...: run FOLDER/page.js on FOLDER/data.json in a document of elements with these ids,
// move its slider, point at a circle, and print what was drawn.
'use strict';
const fs = require('fs');
const vm = require('vm');
const [folder, ...ids] = process.argv.slice(2);

class Element {
  constructor(name) { Object.assign(this, { name, children: [], attributes: {}, listeners: {} }); }
  setAttribute(key, value) { this.attributes[key] = value; }
  appendChild(child) { this.children.push(child); return child; }
  append(...children) { this.children.push(...children); }
  addEventListener(event, listener) { (this.listeners[event] ||= []).push(listener); }
  fire(event) { (this.listeners[event] || []).forEach(listener => listener()); }
  all(name) { return this.children.flatMap(child => [...(child.name === name ? [child] : []), ...child.all(name)]); }
}

const byId = Object.fromEntries(ids.map(id => [id, new Element(id)]));
byId.data.textContent = fs.readFileSync(`${folder}/data.json`, 'utf8');
byId.ratio.value = '50';
const document = {
  getElementById: id => byId[id] ?? null,
  createElement: name => new Element(name),
  createElementNS: (space, name) => new Element(name),
};
vm.runInNewContext(fs.readFileSync(`${folder}/page.js`, 'utf8'), { document });

const rects = byId.maps.all('rect');
const state = () => ({
  ratio: Number(byId.ratio.value) / 100,
  text: byId.shown.textContent,
  low: rects.filter(rect => rect.attributes['fill-opacity'] > 0).length,
  labels: byId.maps.all('span').map(span => span.textContent),
});
const sliders = [state()];
for (const value of ['0', '35', '80']) {
  byId.ratio.value = value;
  byId.ratio.fire('input');
  sliders.push(state());
}
const circles = byId.front.all('circle');
circles[0].fire('mouseenter');
const hovered = byId.front.all('p')[0].textContent;
console.log(JSON.stringify({ windows: rects.length, circles: circles.length, sliders, hovered }));
