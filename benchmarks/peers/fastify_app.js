// Fastify on Node: validates and writes by the schema itself, as Fastify does.
'use strict'

const { randomUUID } = require('node:crypto')
const { readFileSync } = require('node:fs')
const path = require('node:path')
const fastify = require('fastify')

const MAX_LIMIT = 1000

// What Fastify has for schemas knows draft 7, of which this one uses no more but "$defs".
function readSchema () {
  const file = path.join(__dirname, '..', '..', 'schema', 'address-book-v1.0.json')
  const { $schema, ...schema } = JSON.parse(readFileSync(file, 'utf8'))
  return schema
}

// Bodies are refused for what is wrong with them, not mended.
function makeApp (schema) {
  const app = fastify({
    logger: false,
    disableRequestLogging: true,
    genReqId: () => randomUUID().replaceAll('-', ''),
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false, useDefaults: false, strict: false } }
  })
  app.addSchema(schema)
  addLog(app)
  addRoutes(app, { $ref: `${schema.$id}#` })
  return app
}

// One write for each line, as in the other peers.
function addLog (app) {
  const stdout = require('pino').destination({ dest: 1, sync: true })
  app.addHook('onResponse', async (request, reply) => {
    stdout.write(`time=${(Date.now() / 1000).toFixed(3)} level=INFO method=${request.method} ` +
      `path="${request.url}" status=${reply.statusCode} ` +
      `duration=${(reply.elapsedTime / 1000).toFixed(6)} request_id=${request.id}\n`)
  })
}

function addRoutes (app, entry) {
  const book = new Map()

  app.post('/addresses', { schema: { body: entry } }, async (request, reply) => {
    const id = randomUUID().replaceAll('-', '')
    book.set(id, request.body)
    return reply.code(201).header('Location', `/addresses/${id}`).send()
  })

  // Without a schema for answers: with it a list takes half as long again.
  app.get('/addresses/:id', async (request, reply) => {
    return book.get(request.params.id) ?? reply.code(404).send({ message: 'Not Found' })
  })

  app.put('/addresses/:id', { schema: { body: entry } }, async (request, reply) => {
    if (!book.has(request.params.id)) return reply.code(404).send({ message: 'Not Found' })
    book.set(request.params.id, request.body)
    return reply.code(204).send()
  })

  app.get('/addresses', async (request) => {
    const ids = [...book.keys()].sort().slice(0, Math.min(Number(request.query.limit ?? 100), MAX_LIMIT))
    return Object.fromEntries(ids.map((id) => [id, book.get(id)]))
  })
}

makeApp(readSchema()).listen({ host: '127.0.0.1', port: Number(process.argv[2]) })
