/** Wheel, pinch, drag and double click of one element, as moves and zooms in its CSS pixels. */

const LINE = 16; // CSS pixels of a line or a page, for mice that count in those
const PAGE = 400;
const MOST = 0.25; // by which a step of the wheel changes the scale's logarithm

/**
 * @param {HTMLElement} element
 * @param {{pan: (dx: number, dy: number) => void, zoom: (factor: number, x: number, y: number) => void,
 * toggle: (x: number, y: number) => void, hover: (x: number | null, y: number | null) => void,
 * active: () => boolean}} actions x and y from the element's corner; nothing is done while `active` is false
 */
export function listen(element, { pan, zoom, toggle, hover, active }) {
  const down = new Map(); // where each pointer is that is held down
  const place = ({ clientX, clientY }) => {
    const { left, top } = element.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  };

  element.style.touchAction = "none"; // the page does not scroll under a finger that pans
  element.addEventListener("wheel", (event) => {
    if (!active()) return;
    event.preventDefault();
    const unit = [1, LINE, PAGE][event.deltaMode];
    const { x, y } = place(event);
    // a trackpad's pinch comes as ctrl + wheel with small steps; a mouse's wheel with ctrl has large ones
    const step = -event.deltaY * unit * (event.ctrlKey ? 0.01 : 0.002);
    zoom(Math.exp(Math.min(Math.max(step, -MOST), MOST)), x, y);
  }, { passive: false });

  element.addEventListener("pointerdown", (event) => {
    if (!active() || event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    down.set(event.pointerId, place(event));
  });
  element.addEventListener("pointermove", (event) => {
    const now = place(event);
    hover(now.x, now.y);
    if (!active() || !down.has(event.pointerId)) return;
    const before = middle(down);
    down.set(event.pointerId, now);
    const after = middle(down);
    if (before.spread) zoom(after.spread / before.spread, before.x, before.y); // first: what is fitted cannot be panned
    pan(after.x - before.x, after.y - before.y);
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    element.addEventListener(name, (event) => {
      down.delete(event.pointerId);
      if (event.pointerType === "touch") hover(null, null);
    });
  }
  element.addEventListener("pointerleave", () => hover(null, null));
  element.addEventListener("dblclick", (event) => {
    const { x, y } = place(event);
    if (active()) toggle(x, y);
  });
}

/** The centre of the pointers, and how far they are from it on average. */
function middle(pointers) {
  const places = [...pointers.values()];
  const x = places.reduce((sum, place) => sum + place.x, 0) / places.length;
  const y = places.reduce((sum, place) => sum + place.y, 0) / places.length;
  const spread = places.reduce((sum, place) => sum + Math.hypot(place.x - x, place.y - y), 0) / places.length;
  return { x, y, spread };
}
