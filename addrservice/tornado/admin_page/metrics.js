// Reads Prometheus' text format, and counts what has happened between two answers.
'use strict';

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const unescape = (text) => text.replace(/\\(.)/g, (_, char) => (char === 'n' ? '\n' : char));
const toNumber = (text) => Number(text.replace('Inf', 'Infinity'));
const knownLabels = new Map(); // by their text: they are the same in every answer

function labelsOf(text) {
  if (!knownLabels.has(text)) {
    knownLabels.set(text, Object.fromEntries(
      [...text.matchAll(LABEL)].map(([, name, value]) => [name, unescape(value)])));
  }
  return knownLabels.get(text);
}

/** Values by name, and then by the text of the labels. */
function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split('\n')) {
    const match = LINE.exec(line);
    if (!match) continue;
    if (!samples.has(match[1])) samples.set(match[1], new Map());
    samples.get(match[1]).set(match[2] || '', toNumber(match[3]));
  }
  return samples;
}

/** What has happened between two answers of the same process. */
class Interval {
  constructor(before, now) {
    Object.assign(this, { before, now, seconds: Math.max(now.at - before.at, 0.001) });
  }

  /** What each counter has grown by: a list of [labels, growth]. */
  grown(name, where = () => true) {
    const before = this.before.samples.get(name) || new Map();
    return [...this.now.samples.get(name) || []]
      .map(([text, value]) => [labelsOf(text), value, before.get(text) || 0])
      .filter(([labels]) => where(labels))
      // One that is smaller than before was set back, and has counted from 0 since.
      .map(([labels, value, old]) => [labels, value < old ? value : value - old]);
  }

  count(name, where) {
    return this.grown(name, where).reduce((sum, [, growth]) => sum + growth, 0);
  }

  /** In all, since the process began. */
  total(name, where) {
    return new Interval(START, this.now).count(name, where);
  }

  /** The value of a gauge; null if there is none. */
  gauge(name, where) {
    return this.now.samples.has(name) ? this.total(name, where) : null;
  }

  rate(name, where) {
    return this.count(name, where) / this.seconds;
  }

  /** Of a histogram: pairs of a bound and how many are not above it, the lowest first. */
  buckets(name, where) {
    const counts = new Map();
    for (const [{ le }, growth] of this.grown(`${name}_bucket`, where)) {
      counts.set(toNumber(le), (counts.get(toNumber(le)) || 0) + growth);
    }
    return [...counts].sort(([a], [b]) => a - b);
  }

  /** As Prometheus' histogram_quantile has it, even within a bucket, in milliseconds. Null: there
   *  was nothing; isOver: it lies above the highest bound, and nobody knows by how much. */
  quantile(share, name, where) {
    const buckets = this.buckets(name, where);
    const wanted = buckets.length ? share * buckets[buckets.length - 1][1] : 0;
    if (!wanted) return null;
    const index = buckets.findIndex(([, count]) => count >= wanted);
    const [lower, below] = index ? buckets[index - 1] : [0, 0];
    const [upper, count] = buckets[index];
    if (upper === Infinity) return { ms: 1000 * lower, isOver: true };
    return { ms: 1000 * (lower + ((upper - lower) * (wanted - below)) / (count - below)) };
  }
}

const START = { at: 0, samples: new Map() };
