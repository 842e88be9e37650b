// What the `openai` npm package is asked to do by test_openai_node.py: one program by name, its result as JSON.
'use strict';
const OpenAI = require('openai');

const { BASE_URL: baseURL, API_KEY: apiKey } = process.env;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const { assistants, threads } = client.beta;
const { runs, messages } = threads;

const WEATHER = {
  type: 'function',
  function: { name: 'get_weather', parameters: { type: 'object', properties: {} } },
};
const CELSIUS = { Oslo: 5, Rome: 21 };
const POLL = { pollIntervalMs: 20 };

const asking = (text) => ({ messages: [{ role: 'user', content: text }] });
const assistantId = async (...tools) => (await assistants.create({ model: 'rules', tools })).id;
const answers = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map((call) => ({
    tool_call_id: call.id,
    output: JSON.stringify({ celsius: CELSIUS[JSON.parse(call.function.arguments).city] }),
  }));
const caught = async (promise) => {
  try {
    await promise;
  } catch (error) {
    const { status, code, param, type, message } = error;
    const request = (error.requestID ?? '').slice(0, 4);
    return { name: error.constructor.name, status, code, param, type, message, request };
  }
  throw new Error('it was not refused');
};

const programs = {
  async polling() {
    const thread = await threads.create(asking('Weather in Oslo and Rome?'));
    let run = await runs.createAndPoll(thread.id, { assistant_id: await assistantId(WEATHER) }, POLL);
    const waited = run.status;
    const submission = { thread_id: thread.id, tool_outputs: answers(run) };
    run = await runs.submitToolOutputsAndPoll(run.id, submission, POLL);
    const newest = (await messages.list(thread.id, { limit: 1 })).data[0];
    return [waited, run.status, newest.content[0].text.value];
  },

  async streaming() {
    const thread = await threads.create(asking('Weather in Oslo and Rome?'));
    const told = [];
    const calls = [];
    const stream = runs
      .stream(thread.id, { assistant_id: await assistantId(WEATHER) })
      .on('event', ({ event }) => told.push(event))
      .on('toolCallDone', (call) => calls.push(call.function.arguments));
    const waiting = await stream.finalRun();
    let said = '';
    const second = runs
      .submitToolOutputsStream(waiting.id, { thread_id: thread.id, tool_outputs: answers(waiting) })
      .on('event', ({ event }) => told.push(event))
      .on('textDelta', (delta) => (said += delta.value));
    const run = await second.finalRun();
    const [message] = await second.finalMessages();
    const names = told.filter((name) => !name.endsWith('delta'));
    return { calls, said, names, status: run.status, text: message.content[0].text.value };
  },

  async paging() {
    const contents = ['0', '1', '2', '3', '4'].map((content) => ({ role: 'user', content }));
    const thread = await threads.create({ messages: contents });
    const texts = async (query) => {
      const found = [];
      for await (const message of messages.list(thread.id, query)) found.push(message.content[0].text.value);
      return found.join('');
    };
    return [await texts({ limit: 2 }), await texts({ limit: 2, order: 'asc' })];
  },

  async cancelling() {
    const stream = threads.createAndRunStream({ assistant_id: await assistantId(), thread: asking('slow') });
    const names = [];
    for await (const { event, data } of stream) {
      names.push(event);
      if (event === 'thread.message.created') await runs.cancel(data.run_id, { thread_id: data.thread_id });
    }
    return names.slice(-3);
  },

  async refusals() {
    const stranger = new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 });
    const thread = await threads.create(asking('think'));
    await runs.create(thread.id, { assistant_id: await assistantId() });
    return [
      await caught(threads.retrieve('thread_X')),
      await caught(assistants.create({ model: 'rules', tools: [{ type: 'file_search' }] })),
      await caught(messages.create(thread.id, { role: 'user', content: 'me too' })),
      await caught(stranger.beta.threads.create()),
    ];
  },
};

programs[process.argv[2]]().then((result) => console.log(JSON.stringify(result)));
