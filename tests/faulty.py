"A mirror that misbehaves on demand: what can go wrong between a client and a Hub."
import asyncio, http.client, http.server, json, re, shutil, socket, struct, threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

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


# ---- a line that misbehaves byte by byte, in front of any server on this machine

@dataclass
class Answer:
    "What a server answered."
    status: int
    headers: list  # Pairs; what belongs to the connection alone is not in it
    body: bytes

    def get(self, name): return next((value for key, value in self.headers if key.lower() == name.lower()), None)
    def but(self, *without, **changed):
        "The same with other headers: `without` are left out, `changed` are put in their place ('_' for '-')."
        changed = {name.replace('_', '-').lower(): value for name, value in changed.items()}
        gone = {name.lower() for name in without} | set(changed)
        return replace(self, headers=[pair for pair in self.headers if pair[0].lower() not in gone] + list(changed.items()))


class Exchange:
    "A request that came over a `FaultyLine`, and what is done with it."
    def __init__(self, handler, line):
        self.handler, self.line, self.method, self.path, self.headers = handler, line, handler.command, handler.path, handler.headers
        self.body = self._body()

    def _body(self):
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''): return self.handler.rfile.read(int(self.headers.get('Content-Length') or 0))
        parts = []
        while size := int(self.handler.rfile.readline().split(b';')[0], 16):
            parts.append(self.handler.rfile.read(size))
            self.handler.rfile.readline()
        self.handler.rfile.readline()
        return b''.join(parts)

    @property
    def start(self):  # First byte asked for; None: all of it
        found = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
        return int(found[1]) if found else None

    def forward(self, **changed):
        "What the server behind the line answers. `changed`: headers of the request, None: left out; `body`: another one."
        body = changed.pop('body', self.body)
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in ('connection', 'keep-alive', 'transfer-encoding', 'content-length', 'expect')} | changed
        connection = http.client.HTTPConnection(self.line.host, self.line.to, timeout=30)
        try:
            connection.putrequest(self.method, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if value is not None: connection.putheader(name, value)
            if body or self.method in ('PUT', 'POST'): connection.putheader('Content-Length', str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            drop = ('connection', 'keep-alive', 'transfer-encoding', *(() if self.method == 'HEAD' else ('content-length',)))
            return Answer(answer.status, [pair for pair in answer.getheaders() if pair[0].lower() not in drop], answer.read())
        finally: connection.close()

    def raw(self, data):
        try: self.handler.wfile.write(data)
        except OSError: self.handler.close_connection = True

    def head(self, answer, length=None):
        "The beginning of an answer, up to the empty line. `length`: what to say of it; None: as it is; -1: nothing."
        headers = [*answer.headers]
        if length != -1 and answer.get('content-length') is None: headers.append(('content-length', str(len(answer.body) if length is None else length)))
        return (f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, 'Unknown')}\r\n" + ''.join(f'{name}: {value}\r\n' for name, value in headers) + '\r\n').encode('latin-1')

    def send(self, answer, length=None):
        self.raw(self.head(answer, length) + (b'' if self.method == 'HEAD' else answer.body))
        if length is not None: self.close()

    def close(self): self.handler.close_connection = True

    def reset(self):
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # the other side sees a reset, not an end
        self.close()

    def stall(self):
        self.line.over.wait(60)
        self.close()


class FaultyLine:
    "A line to a server. `fault` is done to the requests that `matches` fits, `times` times; what was sent over it is kept."
    def __init__(self, url, kind):
        found = urlsplit(url)
        self.host, self.to, self.kind, self.lock = found.hostname, found.port, kind, threading.Lock()
        self.clear()
        line = self
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True
            def log_message(self, *_): pass
            def answer(self):
                exchange = Exchange(self, line)
                line.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
                fault = line.take(exchange)
                try: fault(exchange) if fault else exchange.send(exchange.forward())
                except OSError: self.close_connection = True
            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer
            def handle(self):
                try: super().handle()
                except (OSError, ValueError): pass
        class Server(http.server.ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 64
            def shutdown_request(self, request): self.close_request(request)  # no polite end before a reset
            def handle_error(self, *_): pass
        self._server = Server(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        threading.Thread(target=self._server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True).start()

    def clear(self):
        "No faults from now on."
        if hasattr(self, 'over'): self.over.set()
        self.rules, self.asked, self.hits, self.over = [], [], 0, threading.Event()

    def add(self, matches, fault, times=1, counts=True): self.rules.append([matches, fault, times, counts])

    def take(self, exchange):
        "The fault for this request: of the first rule that is left and fits; rules before it have to be used up."
        with self.lock:
            for rule in self.rules:
                if not rule[2]: continue
                if not rule[0](exchange): return None
                rule[2] -= 1
                self.hits += rule[3]
                return rule[1]

    def close(self):
        self.clear()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def faulty_line(url, kind):
    "A `FaultyLine` for as long as the block runs."
    line = FaultyLine(url, kind)
    try: yield line
    finally: line.close()
