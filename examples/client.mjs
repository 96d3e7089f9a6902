// Ranks five films with nothing but ZeroMQ and msgpack: transport/codec.py specifies the protocol.
//
//   cd examples && npm install && node client.mjs tcp://127.0.0.1:7400
//
// The address is that of a gateway which serves the film recommender of this folder.
import assert from "node:assert/strict";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const PROTOCOL = Buffer.from("TB\x01");
const [SCORE_REQUEST, SCORE_REPLY, ERROR_REPLY, MODELS_REQUEST, MODELS_REPLY] = [1, 2, 3, 4, 5];
const [USER, CANDIDATE, NUMBERS] = [0, 1, 0];
const BUDGET_US = 2_000_000;

const socket = new Dealer({ linger: 0, receiveTimeout: 5000, sendTimeout: 5000 });
socket.connect(process.argv[2] ?? "tcp://127.0.0.1:7400");
let lastId = 0;

/** Send a message; return its answer's fields and arrays. arrays: [dtype, shape, typed array]. */
async function ask(kind, answerKind, fields, arrays = []) {
  const id = ++lastId;
  const parts = [];
  let end = 0;
  const descriptors = arrays.map(([dtype, shape, { buffer, byteOffset, byteLength }]) => {
    const padding = -end & 63; // arrays lie at multiples of 64 bytes
    parts.push(Buffer.alloc(padding), Buffer.from(buffer, byteOffset, byteLength));
    const offset = end + padding;
    end = offset + byteLength;
    return [dtype, 2, offset, ...shape]; // 2: the frame after the header
  });
  const header = encode([kind, "", 0, id, ...fields, descriptors]);
  await socket.send([PROTOCOL, header, ...(arrays.length ? [Buffer.concat(parts)] : [])]);
  for (;;) {
    const frames = await socket.receive();
    assert.deepEqual(frames[0], PROTOCOL, "the server speaks another protocol or version");
    const [gotKind, , , gotId, ...got] = decode(frames[1]);
    if (gotId !== id && gotId !== 0) continue; // a late answer
    if (gotKind === ERROR_REPLY) throw new Error(`${got[0]}: ${got[1]}`);
    assert.equal(gotKind, answerKind);
    return { fields: got.slice(0, -1), descriptors: got.at(-1), frames };
  }
}

/** Return the scores of n candidates, from features as a schema and arrays. */
async function score(model, n, schema, arrays) {
  const fields = [model, BUDGET_US, n, schema];
  const reply = await ask(SCORE_REQUEST, SCORE_REPLY, fields, arrays);
  const { fields: [, , degraded], descriptors, frames } = reply;
  if (degraded) console.warn("some embedding rows could not be had: default rows stand for them");
  const [dtype, frame, offset, rows, columns] = descriptors[0];
  assert.deepEqual([dtype, rows], ["f4", n]);
  const bytes = Uint8Array.from(frames[frame].subarray(offset, offset + 4 * rows * columns));
  return [...new Float32Array(bytes.buffer)].filter((_, i) => i % columns === 0);
}

const { fields } = await ask(MODELS_REQUEST, MODELS_REPLY, []);
const models = JSON.parse(fields[0]);
const model = process.argv[3] ?? "movielens";
assert(model in models, `the server has ${Object.keys(models)}`);
console.log(`${model} ${models[model].version}`);

const films = [50, 100, 181, 258, 286];
const years = [1977, 1997, 1983, 1997, 1996];

// As columns: one block of integers for the user, one for the candidates.
const schema = encode([[USER, NUMBERS, ["age"]], [CANDIDATE, NUMBERS, ["item_id", "year"]]]);
const byColumns = await score(model, films.length, schema, [
  ["i4", [1, 1], Int32Array.of(30)],
  ["i4", [2, films.length], Int32Array.from([...films, ...years])],
]);

// As rows: simpler, and dearer for the server.
const rows = encode([{ age: 30 }, films.map((item_id, i) => ({ item_id, year: years[i] }))]);
const byRows = await score(model, films.length, new Uint8Array(0), [["u1", [rows.length], rows]]);

assert.deepEqual(byColumns, byRows);
assert(byColumns.every(Number.isFinite));
films.forEach((film, i) => console.log(`film ${film}: ${byColumns[i].toFixed(4)}`));
socket.close();
