// The admin port's page: asks the port's own interface every two seconds, and draws what it says.
// What comes from there may quote a client: it becomes text, never markup.
// Metrics are read in metrics.js, and requests are shown in requests.js.
'use strict';

const REFRESH_MS = 2000;
const PATIENCE_MS = 5000; // a process whose event loop hangs accepts connections, and says nothing
const WINDOW = 60; // seconds that rates and latencies are taken over: two would make them jump
const DRAWN = 120; // seconds in a sparkline
const $ = (id) => document.getElementById(id);

// --- words and figures ---

/** Three digits that matter, as far as the thousandths. */
function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  const digits = value === 0 || value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

const whole = (value) => (value === null || Number.isNaN(value) ? '–' : Math.round(value).toLocaleString('en'));
const quantileText = (found) => (found ? `${found.isOver ? '> ' : ''}${figure(found.ms)}` : '–');
const clock = (moment) => moment.toISOString().slice(11, 19);

/** A length of time, as exact as one wants to know it. */
function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  if (seconds < 120) return `${Math.max(Math.round(seconds), 0)} s`;
  if (minutes < 120) return `${minutes} min`;
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// --- drawing ---

/** An element; children are elements or text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.flat().map((child) => child ?? ''));
  return made;
}

/** Sets a text. One that is the same is left alone: it would be read out again. */
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

const draw = (id, children) => $(id).replaceChildren(...children);
const row = (name, cells) => element('tr', {}, element('th', { scope: 'row' }, name), cells);
const cell = (text, kind = '') => element('td', { class: kind }, text);

/** Points are [seconds, value]; a value of null leaves a gap. */
function sparkline(points) {
  const namespace = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(namespace, 'svg');
  const line = document.createElementNS(namespace, 'path');
  const [top, end] = [highest(points) || 1, points.length ? points[points.length - 1][0] : 0];
  const drawn = points.map(([at, value], index) => {
    if (value === null) return '';
    const isFirst = !index || points[index - 1][1] === null;
    const place = `${(DRAWN - (end - at)).toFixed(2)} ${(0.96 - (0.92 * value) / top).toFixed(4)}`;
    return isFirst ? `M${place}L${place}` : `L${place}`; // the line of no length is a dot
  });
  line.setAttribute('d', drawn.join(''));
  svg.setAttribute('viewBox', `0 0 ${DRAWN} 1`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  svg.append(line);
  return svg;
}

const highest = (points) => Math.max(0, ...points.map(([, value]) => value ?? 0));

function tile(name, text, note = '', kind = '', ...more) {
  return element('div', {}, element('dt', {}, name), element('dd', { class: kind }, text), more,
    element('dd', { class: 'quiet' }, note));
}

// --- rates and latencies ---

const LATENCY = 'http_server_request_duration_seconds';
const STORE = 'addrservice_db_operation_duration_seconds';
const REFUSED = 'addrservice_requests_refused_total';
const DAMAGED = 'addrservice_unreadable_records_total';
const ANSWERS = ['ok', 'address_not_found', 'address_exists', 'address_changed'];
const isWork = (labels) => !['/healthz', '/readiness'].includes(labels.route);
const isFault = (labels) => labels.status >= '500';

/** What the metrics have said in the last minute, the oldest first; the last two in any case. */
let answers = [];
let history = { rate: [], p99: [] };

function showMetrics(info, text) {
  const now = { at: info.uptime / 1000, process: info.started, samples: parseMetrics(text) };
  // Not by its number: in a container each process has the same.
  answers = [...answers.filter((answer) => answer.process === now.process), now];
  while (answers.length > 2 && now.at - answers[0].at > WINDOW + REFRESH_MS / 1000) answers.shift();
  const before = answers.length > 1 ? answers[0] : START;
  remember(now, answers[answers.length - 2]);
  showWindow(now.at - before.at, before === START);
  for (const show of [showNow, showRoutes, showStore]) show(new Interval(before, now), info);
}

function showWindow(seconds, isAll) {
  const window = isAll ? 'since the start' : `in the last ${duration(seconds)}`;
  for (const head of document.querySelectorAll('th.window')) head.textContent = window;
  say('window', `${clock(serverTime)} UTC, without probes, ${window}`);
}

/** Adds to the sparklines what has happened since the last refresh. */
function remember(now, before) {
  const step = before && new Interval(before, now);
  const p99 = step && step.quantile(0.99, LATENCY, isWork);
  const add = (points, value) => [...points, [now.at, value]].filter(([at]) => at > now.at - DRAWN);
  history = step ? {
    rate: add(history.rate, step.rate(`${LATENCY}_count`, isWork)),
    p99: add(history.p99, p99 && p99.ms),
  } : { rate: [], p99: [] };
}

function showNow(interval, info) {
  const lag = interval.quantile(0.99, 'addrservice_event_loop_lag_seconds');
  draw('now', [
    ...requestTiles(interval),
    tile('in flight', whole(interval.gauge('http_server_active_requests')),
      `at most ${info.config.server['max-in-flight']}`),
    refusedTile(interval),
    tile('loop lag p99 ms', quantileText(lag)),
    ...processTiles(interval), ...storeTiles(interval)]);
}

function requestTiles(interval) {
  const name = `${LATENCY}_count`;
  const requests = interval.count(name, isWork);
  const faults = interval.count(name, (labels) => isWork(labels) && isFault(labels));
  const p99 = interval.quantile(0.99, LATENCY, isWork);
  return [
    tile('requests/s', figure(requests / interval.seconds), scale(history.rate), '', sparkline(history.rate)),
    tile('p99 ms', quantileText(p99), scale(history.p99), '', sparkline(history.p99)),
    requests ? tile('5xx', `${figure((100 * faults) / requests)} %`, `${whole(faults)} of ${whole(requests)}`,
      faults ? 'error' : '') : tile('5xx', '–')];
}

/** A line without a scale says nothing. */
function scale(points) {
  return highest(points) ? `highest ${figure(highest(points))}` : 'none while watched';
}

function refusedTile(interval) {
  const count = interval.count(REFUSED);
  const reasons = interval.grown(REFUSED).filter(([, growth]) => growth)
    .map(([labels, growth]) => `${whole(growth)} ${labels.reason.replaceAll('_', ' ')}`);
  return tile('refused', whole(count), count ? reasons.join(', ')
    : `${whole(interval.total(REFUSED))} since the start`, count ? 'warning' : '');
}

/** What the system knows of the process; not every system does. */
function processTiles(interval) {
  const memory = interval.gauge('process_resident_memory_bytes');
  const maximum = interval.gauge('process_max_fds');
  return [
    tile('CPU', interval.gauge('process_cpu_seconds_total') === null ? '–'
      : `${figure(100 * interval.rate('process_cpu_seconds_total'))} %`, 'of one core'),
    tile('memory MB', memory === null ? '–' : figure(memory / 1e6)),
    tile('open files', whole(interval.gauge('process_open_fds')), maximum && `at most ${whole(maximum)}`)];
}

function storeTiles(interval) {
  const connections = (state) =>
    interval.gauge('db_client_connection_count', (labels) => labels.state === state);
  const tiles = [tile('entries', whole(interval.gauge('addrservice_entries')))];
  if (connections('used') !== null) {
    tiles.push(tile('connections used', whole(connections('used')),
      `${connections('idle')} idle, at most ${whole(interval.gauge('db_client_connection_max'))}`));
  }
  const damaged = interval.total(DAMAGED);
  if (damaged) {
    const kind = interval.count(DAMAGED) ? 'error' : 'warning';
    tiles.push(tile('damaged records met', whole(damaged), 'since the start', kind));
  }
  return tiles;
}

const distinct = (interval, name, label) =>
  [...new Set(interval.grown(name).map(([labels]) => labels[label]))].sort();
const faultCell = (count, kind = '') => cell(whole(count), `${kind} ${count ? 'error' : ''}`);

function showRoutes(interval) {
  const name = `${LATENCY}_count`;
  draw('routes', distinct(interval, name, 'route').map((route) => {
    const of = (labels) => labels.route === route;
    const refused = (labels) => of(labels) && labels.status >= '400' && !isFault(labels);
    const failed = (labels) => of(labels) && isFault(labels);
    const at = (share, kind) => cell(quantileText(interval.quantile(share, LATENCY, of)), kind);
    return row(route, [cell(figure(interval.rate(name, of))), at(0.5), at(0.9, 'spare'), at(0.99),
      cell(whole(interval.count(name, refused)), 'spare'), faultCell(interval.count(name, failed)),
      cell(whole(interval.total(name, of)), 'start spare'), faultCell(interval.total(name, failed), 'start')]);
  }));
}

function showStore(interval) {
  const name = `${STORE}_count`;
  draw('store', distinct(interval, name, 'operation').map((operation) => {
    const of = (labels) => labels.operation === operation;
    const failed = (labels) => of(labels) && !ANSWERS.includes(labels.outcome);
    const calls = interval.count(name, of);
    return row(operation, [cell(figure(calls / interval.seconds)),
      cell(figure(calls ? (1000 * interval.count(`${STORE}_sum`, of)) / calls : null)),
      cell(quantileText(interval.quantile(0.99, STORE, of))), faultCell(interval.count(name, failed)),
      cell(whole(interval.total(name, of)), 'start spare'), faultCell(interval.total(name, failed), 'start')]);
  }));
}

// --- state ---

let firstProcess = null;

function showInfo(info) {
  firstProcess = firstProcess || info.started;
  const isOther = info.started !== firstProcess;
  say('service', info.service);
  say('about', [
    location.host, info.version + (info.git ? ` (${info.git.slice(0, 8)})` : ''), info.engine,
    `Python ${info.python}`, `pid ${info.pid}`,
    `up ${duration(info.uptime / 1000)}${isOther ? ': restarted since this page was opened' : ''}`,
  ].join(' · '));
  $('drain').disabled = info.state !== 'serving';
  $('undrain').disabled = info.state !== 'draining';
}

function showReadiness(info, readiness) {
  setState(`${info.state}, ${readiness.ready ? 'ready' : 'not ready'}`,
    readiness.ready || info.state !== 'serving' ? info.state : 'unready');
  draw('checks', readiness.checks.map((check) => element('li', { class: check.ok ? 'ok' : 'error' },
    element('b', {}, `${check.name} ${check.ok ? 'ok' : 'failed'}`),
    ` ${figure(check.time_ms)} ms${check.detail ? `: ${check.detail}` : ''}`)));
}

function setState(text, kind) {
  say('state', text);
  $('state').className = kind;
  // Several of these pages may be open: what is wrong must show in the tab.
  document.title = `${kind === 'serving' ? '' : `${text} – `}${$('service').textContent}`;
}

let goneSince = null;

/** What is still on the page is old, and must look so. */
function showGone(error) {
  goneSince = goneSince || new Date();
  const isSilent = error instanceof NoAnswer;
  setState(`${isSilent ? error.message : 'out of order'} since ${clock(goneSince)} UTC`, 'gone');
  say('trouble', isSilent ? '' : `/info: ${error.message}`);
  document.body.classList.add('old');
  for (const id of ['drain', 'undrain']) $(id).disabled = true;
}

function showBack() {
  goneSince = null;
  document.body.classList.remove('old');
}

// --- loggers ---

function showLoggers({ loggers, levels }, isAsked = false) {
  const choices = () => [...$('loggers').querySelectorAll('select')];
  const names = Object.keys(loggers);
  const isInUse = (choice) => !isAsked && choice === document.activeElement;
  // Made once, and again when there are others: somebody may be choosing.
  if (choices().map((choice) => choice.name).join() !== names.join() && !choices().some(isInUse)) {
    $('loggers').replaceChildren(...names.map((name) => loggerRow(name, levels)));
  }
  for (const choice of choices()) {
    const found = loggers[choice.name]; // not in a process that was started anew
    if (found && !isInUse(choice)) showLevel(choice, found);
  }
}

function loggerRow(name, levels) {
  const choice = element('select', { name, 'data-logger': name }, (name === 'root' ? levels : ['', ...levels])
    .map((level) => element('option', { value: level }, level)));
  choice.addEventListener('change', () => setLevel(choice));
  return element('label', {}, element('span', {}, name), choice);
}

function showLevel(choice, { level, effective }) {
  const known = [...choice.options].map((option) => option.value);
  if (level && !known.includes(level)) choice.add(element('option', { value: level }, level)); // a number
  if (known.includes('')) choice.options[0].textContent = `inherit (${effective})`;
  choice.value = level || '';
  choice.classList.toggle('own', Boolean(level));
}

/** Whatever comes of it, what is in effect is shown then, here and where it is inherited. */
async function setLevel(choice) {
  await send('PUT', `loggers/${encodeURIComponent(choice.name)}`, { level: choice.value || null });
  await ask('loggers').then((found) => showLoggers(found, true), complain);
}

// --- asking ---

let serverTime = new Date(); // its clock may not be that of the browser

/** There was none: not at all, or not in time. */
class NoAnswer extends Error {
  constructor(cause) {
    super(cause.name === 'TimeoutError' ? 'not answering' : 'not reachable', { cause });
  }
}

async function askText(path, options = {}) {
  try {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
    serverTime = new Date(answer.headers.get('Date') || Date.now());
    return { answer, text: await answer.text() };
  } catch (error) {
    throw new NoAnswer(error);
  }
}

/** The document that a path answers with; an error says in its message what went wrong.
 *  A status of 400 and more is an error, but for those that are expected. */
async function ask(path, options = {}, expected = []) {
  const { answer, text } = await askText(path, options);
  const isJSON = (answer.headers.get('Content-Type') || '').startsWith('application/json');
  const content = isJSON ? JSON.parse(text) : {};
  if (!answer.ok && !expected.includes(answer.status)) {
    throw new Error(content.detail || `${answer.status} ${answer.statusText}`);
  }
  if (!isJSON) throw new Error('the answer is not JSON');
  return content;
}

async function askMetrics() {
  const { answer, text } = await askText('metrics');
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return text;
}

const complain = (error) => say('said', error.message);

/** Changes something; if that fails, says so until something else is tried. */
async function send(method, path, content) {
  say('said', '');
  const headers = { 'Content-Type': 'application/json' };
  await ask(path, { method, headers, body: content && JSON.stringify(content) }).catch(complain);
}

async function rotate(path) {
  await send('POST', path);
  await refresh();
  await refresh(); // the one before may have begun too early to know
}

/** Asks for everything; what fails by itself is told, and keeps nothing else from being shown. */
async function askAll() {
  const info = await ask('info');
  showBack();
  showInfo(info);
  const parts = {
    readiness: ask('readiness', {}, [503]).then((found) => showReadiness(info, found)),
    metrics: askMetrics().then((text) => showMetrics(info, text)),
    requests: showRing(info) ? ask('requests').then(showRequests) : Promise.resolve(),
    loggers: ask('loggers').then((found) => showLoggers(found)),
  };
  parts.readiness.catch(() => setState(`${info.state}, readiness unknown`, 'unready'));
  const told = await Promise.all(Object.entries(parts).map(
    ([path, part]) => part.then(() => '', (error) => `/${path}: ${error.message}`)));
  say('trouble', told.filter(Boolean).join('; '));
}

let refreshing = null;

/** One at a time: of two the older might come last. */
function refresh() {
  refreshing ??= askAll().catch(showGone).finally(() => { refreshing = null; });
  return refreshing;
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, REFRESH_MS);
}

$('drain').addEventListener('click', () => {
  if (confirm('Take this instance out of rotation? It is not ready then, and still serves.')) rotate('drain');
});
$('undrain').addEventListener('click', () => rotate('undrain'));
addEventListener('keydown', (event) => { if (event.key === 'Escape' && chosen !== null) location.hash = ''; });
addEventListener('hashchange', showChosen);
document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
run();
showChosen();
