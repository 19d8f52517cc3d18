/** Elements of the page. */

export const $ = (id) => document.getElementById(id);

/** make("p", {className: "hint"}, "text", child) */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** The same for SVG, with attributes. */
export function shape(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Shows where a slider is, for the coloured part of its track. */
export const fill = (slider, share) => slider.style.setProperty("--at", share);
