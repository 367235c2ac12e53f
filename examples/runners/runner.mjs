// A runner for the queue `text` in JavaScript: it needs a NATS client and nothing of Penstock.
// npm install && node runner.mjs
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, headers, nanos } from "@nats-io/transport-node";

const QUEUE = "text", DURABLE = `runner_tool_${QUEUE}`, ID = `js-${process.pid}`;
const LATE = 10077; // the subject has its message already: another result counts
const started_at = new Date().toISOString();

const nc = await connect({ servers: process.env.PENSTOCK_NATS_URL ?? "nats://127.0.0.1:4222", maxReconnectAttempts: -1 });
const js = jetstream(nc), manager = await jetstreamManager(nc);
await manager.consumers.add("RUNS", {
  durable_name: DURABLE, filter_subject: `run.*.*.*.out.*.step.tool.${QUEUE}.>`,
  ack_policy: AckPolicy.Explicit, ack_wait: nanos(10_000), max_deliver: -1, max_ack_pending: 10_000,
});

async function beat() { // the entry expires by itself when this stops
  const ttl = headers();
  ttl.set("Nats-TTL", "60s");
  const record = { runner_id: ID, kind: "tool", queue: QUEUE, capabilities: [{ name: "word-count" }],
    started_at, beat_at: new Date().toISOString(), ttl_seconds: 60 };
  await js.publish(`$KV.runners.tool.${QUEUE}.${ID}`, JSON.stringify(record), { headers: ttl });
}
await beat();
setInterval(beat, 20_000).unref();

for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => messages.stop());
const messages = await (await js.consumers.get("RUNS", DURABLE)).consume({ max_messages: 16 });
for await (const message of messages) {
  const [, tenant, shard, run] = message.subject.split(".");
  const [step, attempt] = message.subject.split(".").slice(-2);
  const asked = message.json(), began = new Date().toISOString();
  const words = asked.input.text.split(/\s+/).filter(Boolean).length;
  const result = { type: "step.result", kind: "tool", name: asked.name, status: "succeeded",
    output: { words }, runner_id: ID, started_at: began, occurred_at: new Date().toISOString() };
  try {
    await js.publish(`run.${tenant}.${shard}.${run}.in.result.${step}.${attempt}`, JSON.stringify(result));
  } catch (error) {
    if (error.code !== LATE) throw error;
  }
  message.ack(); // last: a step that is not acknowledged comes again
}
await js.publish(`$KV.runners.tool.${QUEUE}.${ID}`, "", { headers: (() => { const gone = headers(); gone.set("KV-Operation", "DEL"); return gone; })() });
await nc.drain();
