// The admin port's page: asks the port's own interface every two seconds, and draws what it says.
// What comes from there may quote a client: it becomes text, never markup.
'use strict';

const REFRESH_MS = 2000;
const KEPT = 60; // refreshes in a sparkline: two minutes
const $ = (id) => document.getElementById(id);

// --- Prometheus' text format ---

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const unescape = (text) => text.replace(/\\(.)/g, (_, char) => (char === 'n' ? '\n' : char));

/** Samples by name: a list of {labels, value}. */
function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split('\n')) {
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] || '').matchAll(LABEL)) labels[name] = unescape(value);
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: Number(match[3].replace('+Inf', 'Infinity')) });
  }
  return samples;
}

const values = (samples, name, where = () => true) =>
  (samples.get(name) || []).filter(({ labels }) => where(labels));
const total = (samples, name, where) =>
  values(samples, name, where).reduce((sum, { value }) => sum + value, 0);

/** What has been added between two refreshes. */
const added = (before, now, name, where) => total(now, name, where) - total(before, name, where);

/** A quantile, as Prometheus' histogram_quantile has it: even within a bucket. In seconds. */
function quantile(share, before, now, name, where) {
  const counts = new Map();
  for (const [samples, sign] of [[now, 1], [before, -1]]) {
    for (const { labels, value } of values(samples, `${name}_bucket`, where)) {
      const bound = labels.le === '+Inf' ? Infinity : Number(labels.le);
      counts.set(bound, (counts.get(bound) || 0) + sign * value);
    }
  }
  const buckets = [...counts].sort(([a], [b]) => a - b);
  const all = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!all) return null;
  const index = buckets.findIndex(([, count]) => count >= share * all);
  const [lower, below] = index ? buckets[index - 1] : [0, 0];
  const [upper, count] = buckets[index];
  return upper === Infinity ? lower : lower + ((upper - lower) * (share * all - below)) / (count - below);
}

// --- drawing ---

/** An element; children are elements or text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (child === null || child === undefined ? '' : child)));
  return made;
}

const number = (value, digits = 1) => (value === null || Number.isNaN(value) ? '–' : value.toFixed(digits));
const milliseconds = (seconds) => (seconds === null ? '–' : number(1000 * seconds, 2));

function row(...cells) {
  return element('tr', {}, ...cells.map((cell) => (typeof cell === 'number'
    ? element('td', { class: 'number' }, number(cell)) : element('td', {}, cell))));
}

function sparkline(points) {
  const namespace = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(namespace, 'svg');
  svg.setAttribute('viewBox', `0 0 ${KEPT - 1} 1`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS(namespace, 'polyline');
  const top = Math.max(...points, 1e-9);
  line.setAttribute('points', points.map((point, at) =>
    `${KEPT - points.length + at},${0.97 - (0.94 * point) / top}`).join(' '));
  svg.append(line);
  return svg;
}

function tile(name, text, points) {
  return element('div', {}, element('dt', {}, name), element('dd', {}, text),
    ...(points ? [sparkline(points)] : []));
}

// --- what is shown ---

const history = { rate: [], p99: [] };
const remember = (points, value) => { points.push(value || 0); points.splice(0, points.length - KEPT); };
const LATENCY = 'http_server_request_duration_seconds';
const STORE = 'addrservice_db_operation_duration_seconds';
const isWork = (labels) => !['/healthz', '/readiness'].includes(labels.route);
const isFault = (labels) => isWork(labels) && labels.status >= '500';

function showNow(before, now, seconds) {
  const requests = added(before, now, `${LATENCY}_count`, isWork);
  const faults = added(before, now, `${LATENCY}_count`, isFault);
  const p99 = quantile(0.99, before, now, LATENCY, isWork);
  remember(history.rate, requests / seconds);
  remember(history.p99, p99);
  const refused = values(now, 'addrservice_requests_refused_total').filter(({ value }) => value)
    .map(({ labels, value }) => `${labels.reason} ${value}`).join(', ');
  const connections = values(now, 'db_client_connection_count')
    .map(({ labels, value }) => `${value} ${labels.state}`).join(', ');
  $('now').replaceChildren(
    tile('requests/s', number(requests / seconds), history.rate),
    tile('p99 ms', milliseconds(p99), history.p99),
    tile('errors (5xx)', requests ? `${number((100 * faults) / requests)} %` : '–'),
    tile('in flight', total(now, 'http_server_active_requests')),
    tile('loop lag p99 ms', milliseconds(quantile(0.99, before, now, 'addrservice_event_loop_lag_seconds'))),
    tile('entries', values(now, 'addrservice_entries').length ? total(now, 'addrservice_entries') : '–'),
    tile('memory MB', number(total(now, 'process_resident_memory_bytes') / 1e6)),
    tile('refused', refused || 'none'),
    ...(connections ? [tile('connections', connections)] : []));
}

const distinct = (samples, name, label) =>
  [...new Set(values(samples, name).map(({ labels }) => labels[label]))].sort();

function showRoutes(before, now, seconds) {
  $('routes').replaceChildren(...distinct(now, `${LATENCY}_count`, 'route').map((route) => {
    const of = (labels) => labels.route === route;
    const faults = (labels) => of(labels) && labels.status >= '500';
    return row(route, added(before, now, `${LATENCY}_count`, of) / seconds,
      ...[0.5, 0.9, 0.99].map((share) => milliseconds(quantile(share, before, now, LATENCY, of))),
      String(total(now, `${LATENCY}_count`, faults)));
  }));
}

function showStore(before, now, seconds) {
  $('store').replaceChildren(...distinct(now, `${STORE}_count`, 'operation').map((operation) => {
    const of = (labels) => labels.operation === operation;
    const failed = (labels) => of(labels) && labels.outcome !== 'ok';
    const calls = added(before, now, `${STORE}_count`, of);
    return row(operation, calls / seconds,
      milliseconds(calls ? added(before, now, `${STORE}_sum`, of) / calls : null),
      milliseconds(quantile(0.99, before, now, STORE, of)), String(total(now, `${STORE}_count`, failed)));
  }));
}

function showState(info, readiness) {
  $('service').textContent = document.title = info.service;
  $('state').textContent = `${info.state}${readiness.ready ? ', ready' : ', not ready'}`;
  $('state').className = info.state;
  $('about').textContent = `${info.version}${info.git ? ` (${info.git.slice(0, 8)})` : ''} · ${info.engine}`
    + ` · Python ${info.python} · pid ${info.pid} · up ${Math.round(info.uptime / 1000)} s`;
  $('drain').disabled = info.state !== 'serving';
  $('undrain').disabled = info.state !== 'draining';
  $('checks').replaceChildren(...readiness.checks.map((check) => row(check.name,
    element('span', { class: check.ok ? 'ok' : 'error' }, check.ok ? 'ok' : 'failed'),
    `${number(check.time_ms, 2)} ms`, check.detail)));
}

function requestTable(requests) {
  const head = element('tr', {}, ...['started', 'request', 'status', 'ms', 'spans', 'id']
    .map((name) => element('th', {}, name)));
  return element('table', {}, element('thead', {}, head), element('tbody', {},
    ...requests.slice(0, 20).map((request) => row(request.started.slice(11, 23),
      `${request.method} ${request.uri}`,
      element('span', { class: request.status >= 500 ? 'error' : '' }, String(request.status)),
      number(request.time_ms, 2), String(request.spans),
      element('a', { href: `#/requests/${encodeURIComponent(request.req_id)}` }, request.req_id.slice(0, 12))))));
}

function showRequests(lists) {
  for (const kind of ['slowest', 'failed', 'last']) {
    const requests = lists && lists[kind];
    $(kind).replaceChildren(requests && requests.length ? requestTable(requests)
      : element('p', { class: 'quiet' }, lists ? 'none' : 'There is no collector "ring" in the configuration.'));
  }
}

/** Spans in the order of a tree, each with its depth. */
function tree(spans, parent, depth = 0) {
  const ids = new Set(spans.map((span) => span.span_id));
  const isHere = (span) => (parent === undefined ? !ids.has(span.parent_id) : span.parent_id === parent);
  return spans.filter(isHere).sort((a, b) => a.start_ms - b.start_ms)
    .flatMap((span) => [{ span, depth }, ...tree(spans, span.span_id, depth + 1)]);
}

function waterfall(request) {
  const end = (span) => span.start_ms + (span.duration_ms || 0);
  const whole = Math.max(...request.spans.map(end), 0.001);
  return element('div', { class: 'waterfall' }, ...tree(request.spans).map(({ span, depth }) => {
    const name = element('summary', {}, span.name);
    const more = { ...span.attributes, ...(span.error ? { error: span.error } : {}) };
    const label = element('details', {}, name, element('pre', {}, JSON.stringify(more, null, 1)));
    label.style.paddingLeft = `${depth}rem`;
    const bar = element('div', { class: span.error ? 'bar error' : 'bar' });
    bar.style.left = `${(100 * span.start_ms) / whole}%`;
    bar.style.width = `${(100 * (span.duration_ms || 0)) / whole}%`;
    const time = span.duration_ms === null ? 'not ended' : `${number(span.duration_ms, 2)} ms`;
    return element('div', { class: 'span' }, label, element('div', { class: 'track' }, bar), element('span', {}, time));
  }));
}

function showRequest(request) {
  const line = Object.entries(request.line).map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(' ');
  return element('article', {}, element('pre', { class: 'line' }, line), waterfall(request),
    ...(request.spans_dropped ? [element('p', { class: 'quiet' }, `and ${request.spans_dropped} spans more`)] : []),
    ...(request.trace ? [element('pre', { class: 'trace error' }, request.trace)] : []));
}

async function showChosen() {
  const match = /^#\/requests\/(.+)$/.exec(location.hash);
  $('request').hidden = !match;
  if (!match) return;
  const answer = await fetch(`requests/${match[1]}`);
  const found = answer.ok ? (await answer.json()).requests.map(showRequest)
    : [element('p', {}, 'This request is not kept any more.')];
  $('request-title').textContent = `Request ${decodeURIComponent(match[1])}`;
  $('request-found').replaceChildren(...found);
  $('request').scrollIntoView();
}

function showLoggers({ loggers, levels }) {
  // Not while somebody chooses.
  if ($('loggers').contains(document.activeElement)) return;
  $('loggers').replaceChildren(...Object.entries(loggers).map(([name, { level, effective }]) => {
    const choice = element('select', { 'aria-label': `level of ${name}`, 'data-logger': name },
      ...(name === 'root' ? levels : ['', ...levels]).map((each) => element('option', { value: each }, each || `(${effective})`)));
    choice.value = level || '';
    choice.addEventListener('change', () => send('PUT', `loggers/${encodeURIComponent(name)}`, { level: choice.value || null }));
    return row(name, choice);
  }));
}

// --- asking ---

const read = async (path) => (await fetch(path)).json();

async function send(method, path, content) {
  const answer = await fetch(path, {
    method, body: content && JSON.stringify(content), headers: { 'Content-Type': 'application/json' },
  });
  if (!answer.ok) alert((await answer.json()).detail);
  document.activeElement.blur();
  await refresh();
}

let last = null;
let goneSince = null;

async function refresh() {
  try {
    const [info, readiness, text, requests, loggers] = await Promise.all([
      read('info'), read('readiness'), fetch('metrics').then((answer) => answer.text()),
      fetch('requests').then((answer) => (answer.ok ? answer.json() : null)), read('loggers')]);
    const now = { samples: parseMetrics(text), at: performance.now(), pid: info.pid };
    const before = last && last.pid === now.pid ? last : { samples: new Map(), at: now.at - info.uptime };
    const seconds = Math.max((now.at - before.at) / 1000, 0.001);
    for (const show of [showNow, showRoutes, showStore]) show(before.samples, now.samples, seconds);
    showState(info, readiness);
    showRequests(requests);
    showLoggers(loggers);
    [last, goneSince] = [now, null];
  } catch (error) {
    goneSince = goneSince || new Date();
    $('state').textContent = `not reachable since ${goneSince.toLocaleTimeString()}`;
    $('state').className = 'gone';
  }
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, REFRESH_MS);
}

$('drain').addEventListener('click', () => confirm('Take this instance out of rotation?') && send('POST', 'drain'));
$('undrain').addEventListener('click', () => send('POST', 'undrain'));
$('profile').addEventListener('change', (event) => {
  if (event.target.value) open(`profile?seconds=${event.target.value}`);
  event.target.value = '';
});
addEventListener('hashchange', showChosen);
run();
showChosen();
