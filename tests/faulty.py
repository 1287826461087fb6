"A mirror that misbehaves on demand: what can go wrong between a client and a Hub."
import asyncio, json, shutil
from contextlib import contextmanager
from pathlib import Path

from whisper_nb.mirror import app, running
from whisper_nb.models import DEMO_DIR

def make_checkpoint(path, megabytes=0, shards=1, config=None):
    "A checkpoint with the demo's small files, and random weights of a given size when one is given."
    import numpy
    from safetensors.numpy import save_file
    path = Path(path)
    shutil.copytree(DEMO_DIR, path)
    if megabytes:
        (path/'model.safetensors').unlink()
        names = ['model.safetensors'] if shards == 1 else [f'model-{n+1:05}-of-{shards:05}.safetensors' for n in range(shards)]
        for seed, name in enumerate(names):
            save_file({f'weight{seed}': numpy.random.default_rng(seed).integers(0, 256, megabytes*10**6//shards, 'uint8')}, path/name)
        if shards > 1: (path/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map={f'weight{n}': name for n, name in enumerate(names)})))
    if config: (path/'config.json').write_text(json.dumps(config))
    return path

class Faults:
    "Rules by a part of the path: each request takes the first rule left; counts the bytes of bodies sent per file."
    def __init__(self, models): self.app,self.rules,self.served,self.requests,self.pause = app(models),{},{},[],0

    def add(self, part, *rules): self.rules.setdefault(part, []).extend(rules)
    def sent(self, name='model.safetensors'): return self.served.get(name, 0)

    async def __call__(self, scope, receive, send):
        headers = {name.decode(): value.decode() for name, value in scope['headers']}
        self.requests.append((scope['path'], headers))
        rule = next((rules.pop(0) for part, rules in self.rules.items() if part in scope['path'] and rules), None)
        if rule and rule[0] == 'status': return await self._status(send, *rule[1:])
        if rule and rule[0] == 'no range': scope = {**scope, 'headers': [pair for pair in scope['headers'] if pair[0] != b'range']}
        await self.app(scope, receive, self._watched(send, Path(scope['path']).name, *(rule or ('right',))))

    async def _status(self, send, status, headers=None, body=b''):
        headers = [(name.lower().encode(), str(value).encode()) for name, value in (headers or {}).items()]
        await send({'type': 'http.response.start', 'status': status, 'headers': [*headers, (b'content-length', str(len(body)).encode())]})
        await send({'type': 'http.response.body', 'body': body})

    def _watched(self, send, name, fault, limit=0):
        sent = 0
        async def watched(message):
            nonlocal sent
            if message['type'] == 'http.response.start' and fault == 'short':
                message = {**message, 'headers': [(key, str(limit).encode() if key == b'content-length' else value) for key, value in message['headers']]}
            if message['type'] == 'http.response.body':
                body = message['body']
                if fault == 'wrong': body = bytes(len(body))
                if fault in ('drop', 'short'): body = body[:max(0, limit - sent)]
                sent += len(body)
                if self.pause: await asyncio.sleep(self.pause)
                message = {**message, 'body': body}
            await send(message)
            if message['type'] == 'http.response.body': self.served[name] = self.served.get(name, 0) + len(message['body'])
            if fault == 'drop' and sent >= limit: raise ConnectionAbortedError('the connection is cut here, on purpose')
        return watched

@contextmanager
def faulty_hub(models):
    "A running mirror with faults: the endpoint and the `Faults`."
    faults = Faults(models)
    with running(faults) as endpoint: yield endpoint, faults
