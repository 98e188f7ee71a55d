// From grey values, masks and probabilities to the colours of a picture. Pure functions.

// Okabe and Ito's, as the overlays of an evaluation have them: what both say, the first, the second.
export const BOTH = [86, 180, 233], FIRST = [213, 94, 0], SECOND = [240, 228, 66];
const STOPS = [[12, 8, 38], [74, 12, 107], [153, 30, 105], [221, 81, 58], [250, 158, 59], [252, 255, 164]];

/** Colours of probabilities 0..255, dark to bright: [256][3]. */
export const HEAT = Array.from({ length: 256 }, (_, value) => {
  const at = (value / 255) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((a, i) => a + (STOPS[low + 1][i] - a) * (at - low));
});

/** Grey values after a window of `width` around `level`: [256]; 255 around 128 changes none. */
export function windowed(level, width) {
  return Uint8ClampedArray.from({ length: 256 }, (_, v) => ((v + 0.5 - level) / width + 0.5) * 255);
}

/** Whether a pixel of a mask touches one that is not in it. */
function edge(mask, at, x, y, width, height) {
  return x === 0 || y === 0 || x === width - 1 || y === height - 1 ||
    !mask[at - 1] || !mask[at + 1] || !mask[at - width] || !mask[at + width];
}

/** Colours of every grey value under every tint, as 32 bits: [tints × 256]. */
function palette(table, tints, fade) {
  const bytes = new Uint8ClampedArray(tints.length * 256 * 4).fill(255);
  tints.forEach((tint, code) => table.forEach((grey, value) => {
    for (let i = 0; i < 3; i++) bytes[(code * 256 + value) * 4 + i] = tint ? grey + fade * (tint[i] - grey) : grey;
  }));
  return new Uint32Array(bytes.buffer);
}

/** One pixel with its probability on it: the heat over the grey, the tint over both. */
function warmed(data, to, grey, chance, heat, tint, fade) {
  const a = heat * chance, colour = HEAT[chance];
  for (let i = 0; i < 3; i++) {
    const warm = grey + a * (colour[i] - grey);
    data[to + i] = tint ? warm + fade * (tint[i] - warm) : warm;
  }
  data[to + 3] = 255;
}

/**
 * Writes the pixels of `box` into `data` (RGBA of the whole picture).
 *
 * look: {width, height, grey, table, probability, probabilityFade, mask, other, fade, outline, tint};
 * with `other` the two masks are told apart by colour, else the mask has the colour `tint`.
 */
export function compose(data, look, box) {
  const { width, height, grey, table, probability, mask, other, fade } = look;
  const tints = other ? [null, FIRST, SECOND, BOTH] : [null, look.tint];
  const colours = palette(table, tints, fade), pixels = new Uint32Array(data.buffer);
  const heat = probability ? look.probabilityFade / 255 : 0, outline = look.outline && !other;
  for (let y = box.top; y <= box.bottom; y++) {
    for (let x = box.left; x <= box.right; x++) {
      const at = y * width + x;
      let code = mask[at];
      if (other) code += 2 * other[at];
      if (outline && code && !edge(mask, at, x, y, width, height)) code = 0;
      if (heat && probability[at]) warmed(data, at * 4, table[grey[at]], probability[at], heat, tints[code], fade);
      else pixels[at] = colours[code * 256 + grey[at]];
    }
  }
}

/** How far two masks agree: pixels in both, in one only, and Dice (1 where both are empty). */
export function agreement(first, second) {
  const count = [0, 0, 0, 0];
  for (let at = 0; at < first.length; at++) count[first[at] + 2 * second[at]]++;
  const [, one, two, both] = count, all = 2 * both + one + two;
  return { both, first: one, second: two, dice: all ? (2 * both) / all : 1 };
}
