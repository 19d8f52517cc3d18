/** Which part of an image is on screen, and how large. All lengths are in pixels of the screen, from its corner. */

const LARGEST = 64; // pixels of the screen per pixel of the image
const STEPS = 63; // scales from 1 on are multiples of 1 / STEPS. As this is odd, no pixel of the screen has its centre
// where two of the image meet, and image and mask, drawn in different ways, agree on which one it shows

/** @typedef {{width: number, height: number}} Size */

/** Where the image is on screen. Never changes: what moves it gives another view. */
export class View {
  /**
   * The whole image, as large as it gets; small pixels are enlarged to squares of one size.
   * @param {Size} image
   * @param {Size} screen
   */
  static fitted(image, screen) {
    const scale = fittingScale(image, screen);
    const steps = scale < 4 ? STEPS : 1;
    return new View(image, screen, scale < 1 ? scale : Math.floor(scale * steps) / steps, 0, 0, true);
  }

  /** At about this scale, and as near to this place of its corner as it may be. */
  constructor(image, screen, wanted, left, top, isFitted = false) {
    this.image = image;
    this.screen = screen;
    this.isFitted = isFitted;
    this.wanted = wanted;
    this.scale = stepped(wanted); // pixels of the screen per pixel of the image
    const fit = fittingScale(image, screen);
    this.left = inside(left, screen.width, image.width * this.scale, image.width * fit);
    this.top = inside(top, screen.height, image.height * this.scale, image.height * fit);
    this.x = Math.round(this.left); // where it is drawn: its first pixel begins with one of the screen
    this.y = Math.round(this.top);
  }

  zoomed(factor, x = this.screen.width / 2, y = this.screen.height / 2) {
    const least = Math.min(fittingScale(this.image, this.screen), 1);
    const wanted = Math.min(this.wanted * factor, LARGEST);
    if (wanted <= least && least < 1) return View.fitted(this.image, this.screen);
    const ratio = stepped(Math.max(wanted, least)) / this.scale;
    const [left, top] = [x - (x - this.left) * ratio, y - (y - this.top) * ratio];
    return new View(this.image, this.screen, Math.max(wanted, least), left, top);
  }

  moved(dx, dy) {
    return new View(this.image, this.screen, this.wanted, this.left + dx, this.top + dy, this.isFitted);
  }

  /** The same on a screen of another size, around the same centre. */
  on(screen) {
    if (this.isFitted) return View.fitted(this.image, screen);
    const [dx, dy] = [(screen.width - this.screen.width) / 2, (screen.height - this.screen.height) / 2];
    return new View(this.image, screen, this.wanted, this.left + dx, this.top + dy);
  }

  /** The image's pixel at a place on screen; null beside the image. */
  pixelAt(left, top) {
    const x = Math.floor((left - this.x) / this.scale);
    const y = Math.floor((top - this.y) / this.scale);
    return x < 0 || y < 0 || x >= this.image.width || y >= this.image.height ? null : { x, y };
  }
}

function fittingScale(image, screen) {
  return Math.min(screen.width / image.width, screen.height / image.height, LARGEST) || 1; // 1: nothing is shown
}

function stepped(scale) {
  return scale < 0.999999 ? scale : Math.round(scale * STEPS) / STEPS;
}

/**
 * Where an axis of the image begins: as wished, but no further than that a point of the image is in the middle of the
 * screen, and in the middle itself where all of it fits.
 */
function inside(start, room, length, fitting) {
  const centred = (room - length) / 2;
  const slack = Math.max(0, Math.min(length / 2, length - fitting));
  return Math.min(Math.max(start, centred - slack), centred + slack);
}
