// The lists of requests, and one of them with the waterfall of its spans.
'use strict';

const MOST_ROWS = 100; // of a list

const statusText = (status) => element('span',
  { class: status >= 500 ? 'error' : status >= 400 ? 'warning' : '' }, String(status));

/** When: with its day, unless that is today's. */
function moment(started) {
  const today = serverTime.toISOString().slice(0, 10);
  return started.slice(0, 10) === today ? started.slice(11, 23) : started.slice(0, 19).replace('T', ' ');
}

const age = (started) => `${duration((serverTime - new Date(started)) / 1000)} ago`;

function requestTable(requests) {
  const head = (name) => element('th', { class: name }, name);
  const heads = ['started (UTC)', 'age', 'status', 'ms', 'request', 'spans', 'id'].map(head);
  return element('table', {}, element('thead', {}, element('tr', {}, heads)),
    element('tbody', {}, requests.map(requestRow)));
}

function requestRow(request) {
  const what = `${request.method} ${request.uri}`;
  return element('tr', {}, cell(moment(request.started)), cell(age(request.started), 'age'),
    cell(statusText(request.status)), cell(figure(request.time_ms), 'ms'),
    element('td', { class: 'what', title: what }, what), cell(String(request.spans), 'spans'),
    element('td', { class: 'id', title: request.req_id },
      element('a', { href: hashOf(request.req_id) }, request.req_id)));
}

/** Rows must not run away from who is about to open one, or copies from them. */
function isHeld(part) {
  const selection = getSelection();
  const isInUse = part.matches(':hover, :has(:focus-visible)')
    || (!selection.isCollapsed && selection.containsNode(part, true));
  return isInUse && part.querySelector('a') !== null;
}

function showRequests(lists) {
  for (const [kind, requests] of Object.entries(lists)) {
    $(kind).classList.toggle('held', isHeld($(kind)));
    if (!isHeld($(kind))) draw(kind, requestList(kind, requests));
  }
}

function requestList(kind, requests) {
  const more = requests.length - MOST_ROWS;
  return [
    requests.length ? requestTable(requests.slice(0, MOST_ROWS)) : element('p', { class: 'quiet' }, 'none'),
    more > 0 ? element('a', { href: `requests?kind=${kind}` }, `${more} more`) : ''];
}

/** Whether requests are recorded; if not, the page says how to. */
function showRing(info) {
  const isThere = 'ring' in (info.config.tracing?.collectors || {});
  $('no-ring').hidden = isThere;
  for (const kind of ['last', 'slowest', 'failed']) $(kind).closest('section').hidden = !isThere;
  return isThere;
}

// --- one request ---

/** Spans in the order of a tree, each with its depth. */
function tree(spans) {
  const ids = new Set(spans.map((span) => span.span_id));
  const below = new Map(); // those whose parent is not here stand at the top
  for (const span of spans) {
    const parent = ids.has(span.parent_id) ? span.parent_id : null;
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push(span);
  }
  const branch = (id, depth) => (below.get(id) || []).sort((a, b) => a.start_ms - b.start_ms)
    .flatMap((span) => [{ span, depth }, ...branch(span.span_id, depth + 1)]);
  return branch(null, 0);
}

function waterfall(request) {
  const end = (span) => span.start_ms + (span.duration_ms || 0);
  const all = Math.max(...request.spans.map(end), 0.001);
  const ticks = [0, 0.25, 0.5, 0.75].map((share) => element('span', {}, figure(share * all)));
  return element('div', { class: 'waterfall' },
    element('div', { class: 'axis quiet', 'aria-hidden': 'true' }, element('span', {}, 'span'),
      element('div', { class: 'track' }, ticks), element('span', {}, `${figure(all)} ms`)),
    tree(request.spans).map(({ span, depth }) => spanRow(span, depth, all)));
}

function spanRow(span, depth, all) {
  const isOpen = span.duration_ms === null;
  const name = element('span', { class: 'name' }, span.name);
  name.style.paddingLeft = `${Math.min(depth, 12) * 0.8}rem`;
  const bar = element('div', { class: `bar ${span.error ? 'error' : ''} ${isOpen ? 'open' : ''}` });
  bar.style.left = `min(${(100 * span.start_ms) / all}%, 100% - 2px)`;
  bar.style.width = `${(100 * (isOpen ? all - span.start_ms : span.duration_ms)) / all}%`;
  const time = isOpen ? 'not ended' : `${figure(span.duration_ms)} ms`;
  return element('details', { class: 'span' },
    element('summary', {}, name, element('div', { class: 'track' }, bar),
      element('span', { class: span.error ? 'time error' : 'time' }, time)),
    element('pre', {}, spanText(span)));
}

function spanText(span) {
  const attributes = Object.entries(span.attributes)
    .map(([name, value]) => `${name}: ${typeof value === 'string' ? value : JSON.stringify(value)}`);
  const error = span.error ? [`error: ${span.error}`] : [];
  return [...error, `began after: ${figure(span.start_ms)} ms`, ...attributes].join('\n');
}

function showRequest(request) {
  const { line, trace, spans_dropped: dropped } = request;
  const why = [line.detail, line.cause].filter(Boolean).join('; ');
  return element('article', {},
    element('p', {}, element('b', {}, `${line.method} ${line.uri}`)),
    element('p', {}, statusText(line.status), ` ${line.reason || ''} after ${figure(line.time_ms)} ms, began `,
      `${request.started.slice(0, 23).replace('T', ' ')} UTC, ${age(request.started)}`),
    why ? element('p', { class: line.status >= 500 ? 'error' : '' }, why) : null,
    waterfall(request),
    dropped ? element('p', { class: 'quiet' }, `and ${dropped} more spans, which were not kept`) : null,
    trace ? errorTrace(trace) : null,
    element('h3', {}, 'Its line in the log'), element('pre', { class: 'line' }, logLine(line)));
}

const logLine = (line) => Object.entries(line)
  .map(([name, value]) => `${name}=${JSON.stringify(value)}`).join(' ');

/** What was raised stands in the last line; it must be seen without scrolling. */
function errorTrace(trace) {
  const lines = trace.split('\n');
  return [element('h3', {}, 'Error trace'), element('p', { class: 'raised error' }, lines[lines.length - 1]),
    element('pre', { class: 'trace', tabindex: '0' }, trace)];
}

const hashOf = (id) => `#/requests/${encodeURIComponent(id)}`;

/** The id of the request that the address names: null if none, as it stands if it is no encoding. */
function chosenId() {
  const match = /^#\/requests\/(.+)$/.exec(location.hash);
  try {
    return match && decodeURIComponent(match[1]);
  } catch {
    return match[1];
  }
}

let chosen = null;
let openedFrom = null; // the list; its rows are made anew

async function showChosen() {
  const [id, before] = [chosenId(), chosen];
  chosen = id;
  $('request').hidden = id === null;
  if (id === null) return focusOpener(before);
  openedFrom = document.activeElement.closest('.requests') || openedFrom;
  $('request-title').textContent = `Request ${id}`;
  $('request-found').replaceChildren('…');
  $('request-title').focus();
  $('request').scrollIntoView();
  const found = await ask(`requests/${encodeURIComponent(id)}`)
    .then(({ requests }) => requests.map(showRequest))
    .catch((error) => [element('p', { class: 'error' }, error.message)]);
  if (chosen === id) $('request-found').replaceChildren(...found);
}

/** Who has closed a request by keyboard goes on where they opened it. */
function focusOpener(id) {
  const isByMouse = document.activeElement === $('close') && !$('close').matches(':focus-visible');
  const opener = openedFrom && [...openedFrom.querySelectorAll('a')]
    .find((link) => link.getAttribute('href') === hashOf(id));
  if (opener && !isByMouse) opener.focus();
}
