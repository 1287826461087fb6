"A loopback stand-in for Google Drive: the part of its API (version 3) that a store needs, to be used through Google's own client."
import asyncio, hashlib, itertools, json, re
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from whisper_nb.mirror import running

FOLDER = 'application/vnd.google-apps.folder'
DOCUMENT = 'application/vnd.google-apps.document'
STEP = 256 << 10 # What has arrived of an upload is kept in multiples of this

@dataclass
class Item:
    "A file or folder."
    id: str
    name: str
    parents: list
    mimeType: str = 'application/octet-stream'
    content: bytes|None = None
    revision: int = 0
    modified: int = 0
    trashed: bool = False
    drive: str|None = None # The shared drive it is in
    checksums: bool = True

    def record(self):
        hours, rest = divmod(self.modified, 3600)
        found = dict(kind='drive#file', id=self.id, name=self.name, mimeType=self.mimeType, parents=self.parents, trashed=self.trashed,
            modifiedTime=f'2026-11-20T{hours:02}:{rest//60:02}:{rest%60:02}.000Z')
        if self.content is None: return found
        found |= dict(size=str(len(self.content)), headRevisionId=f'revision-{self.revision}')
        if self.checksums: found |= dict(md5Checksum=hashlib.md5(self.content).hexdigest(), sha256Checksum=hashlib.sha256(self.content).hexdigest())
        return found

@dataclass
class Session:
    "A resumable upload."
    metadata: dict
    total: int
    target: str|None # The file that gets a new version
    received: bytearray = field(default_factory=bytearray)
    made: str|None = None # The file, once it is complete

class Name(str):
    "Drive compares names without regard to case."
    def __eq__(self, other): return self.casefold() == other.casefold()
    __hash__ = None

_TOKEN = re.compile(r"\s*(?:'((?:\\.|[^'\\])*)'|([A-Za-z]+)|(!=|=|[()]))")
_WORDS = {'=': '==', '!=': '!=', '(': '(', ')': ')', 'true': 'True', 'false': 'False', **{word: word for word in ('name', 'parents', 'mimeType', 'trashed', 'in', 'and', 'or', 'not')}}

def condition(query):
    "A search query as a function of an item; `KeyError` or `AttributeError` when it is none."
    words, place, query = [], 0, query.rstrip()
    while place < len(query):
        found = _TOKEN.match(query, place)
        text, place = found[1], found.end()
        words.append(_WORDS[found[2] or found[3]] if text is None else repr(re.sub(r'\\(.)', r'\1', text)))
    code = compile(' '.join(words), 'query', 'eval')
    return lambda item: eval(code, {'__builtins__': {}}, dict(name=Name(item.name), mimeType=item.mimeType, trashed=item.trashed,
        parents=item.parents + ['root'] * ('my-drive' in item.parents)))

def refusal(status, reason, message='a message of the server'):
    "An answer that says no, as Drive words it."
    return JSONResponse(dict(error=dict(code=status, message=message, errors=[dict(domain='global', reason=reason, message=message)])), status)

def not_found(name): return refusal(404, 'notFound', f'File not found: {name}.')

def _real(id): return 'my-drive' if id == 'root' else id

def chosen(record, fields): return {name: record[name] for name in re.split(r'\s*,\s*', fields.strip()) if name in record}

def _cut(send, limit):
    "Sends the beginning of a body; then the connection is gone."
    sent = 0
    async def cut(message):
        nonlocal sent
        if message['type'] == 'http.response.body':
            body = message['body'][:max(0, limit - sent)]
            sent += len(body)
            message = {**message, 'body': body, 'more_body': True}
        await send(message)
        if message['type'] == 'http.response.body' and sent >= limit: raise ConnectionAbortedError('cut here, on purpose')
    return cut

class Drive:
    "Files, uploads under way, and what is to go wrong. Each rule of `fail` is for one request."
    def __init__(self):
        self.items, self.sessions, self.rules, self.requests = {'my-drive': Item('my-drive', 'My Drive', [], FOLDER)}, {}, [], []
        self.numbers, self.page, self.token, self.revoked, self.received, self.busy, self.most, self.pause = itertools.count(1), 100, None, False, 0, 0, 0, 0
        upload = '/upload/drive/v3/files'
        self.app = Starlette(routes=[Route('/drive/v3/files', self.find, methods=['GET']), Route('/drive/v3/files', self.create, methods=['POST']),
            Route('/drive/v3/files/{id}', self.get, methods=['GET']), Route(upload, self.start, methods=['POST']), Route(upload, self.put, methods=['PUT']),
            Route(f'{upload}/{{id}}', self.start, methods=['PATCH']), Route('/token', self.sign_in, methods=['POST'])])

    # For the tests

    def add(self, name, content=None, parent='my-drive', **fields):
        "Put a file there (with content), or a folder (without)."
        number = next(self.numbers)
        kind = {} if content is not None else dict(mimeType=FOLDER)
        item = Item(**dict(id=f'id-{number}', name=name, parents=[parent], content=content, revision=number, modified=number, drive=self.items[parent].drive if parent in self.items else None) | kind | fields)
        self.items[item.id] = item
        return item

    def fail(self, method, part, *faults):
        "The next requests with this method and this part in their address: ('status', code, reason), ('cut', bytes), ('keep', bytes), ('lost',) or ('forget',)."
        self.rules.extend((method, part, fault) for fault in faults)

    def named(self, name): return [item for item in self.items.values() if item.name == name and not item.trashed]
    def count(self, method, part=''): return sum(method == each[0] and part in each[1] for each in self.requests)

    async def __call__(self, scope, receive, send):
        address = scope['path'] + '?' + scope['query_string'].decode()
        headers = {name.decode(): value.decode() for name, value in scope['headers']}
        self.requests.append((scope['method'], address, headers))
        rule = next((rule for rule in self.rules if rule[0] == scope['method'] and rule[1] in address), None)
        fault = rule[2] if rule else ('none',)
        if rule: self.rules.remove(rule)
        if self.token and scope['path'] != '/token' and headers.get('authorization') != f'Bearer {self.token}': fault = ('status', 401, 'authError')
        scope['fault'] = fault
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            if self.pause: await asyncio.sleep(self.pause)
            if fault[0] != 'status': return await self.app(scope, receive, _cut(send, fault[1]) if fault[0] == 'cut' and scope['method'] == 'GET' else send)
            while (await receive()).get('more_body'): pass
            await refusal(*fault[1:])(scope, receive, send)
        finally: self.busy -= 1

    # The API

    async def sign_in(self, request):
        if self.revoked: return JSONResponse(dict(error='invalid_grant', error_description='Token has been expired or revoked: secret-assertion'), 400)
        return JSONResponse(dict(access_token=self.token, expires_in=3600, token_type='Bearer'))

    def _item(self, request):
        item = self.items.get(_real(request.path_params['id']))
        return None if item and item.drive and request.query_params.get('supportsAllDrives') != 'true' else item

    async def find(self, request):
        asked = request.query_params
        if any(parent not in self.items and parent != 'root' for parent in re.findall(r"'([^'\\]+)' in parents", asked['q'])): return not_found('.')
        try: fits = condition(asked['q'])
        except (KeyError, AttributeError, TypeError, SyntaxError): return refusal(400, 'invalid', 'Invalid Value')
        everywhere = asked.get('includeItemsFromAllDrives') == asked.get('supportsAllDrives') == 'true'
        found = [item for item in self.items.values() if item.parents and fits(item) and (everywhere or not item.drive)]
        if asked.get('orderBy') == 'modifiedTime desc': found.sort(key=lambda item: -item.modified)
        start, fields = int(asked.get('pageToken', 0)), re.search(r'files\(([^)]*)\)', asked['fields'])[1]
        answer = dict(files=[chosen(item.record(), fields) for item in found[start:start + self.page]])
        if 'nextPageToken' in asked['fields'] and len(found) > start + self.page: answer['nextPageToken'] = str(start + self.page)
        return JSONResponse(answer)

    async def get(self, request):
        if (item := self._item(request)) is None: return not_found(request.path_params['id'])
        if request.query_params.get('alt') != 'media': return JSONResponse(chosen(item.record(), request.query_params.get('fields', 'kind, id, name, mimeType')))
        if item.content is None: return refusal(403, 'fileNotDownloadable', 'Only files with binary content can be downloaded.')
        span = re.fullmatch(r'bytes=(\d+)-(\d+)', request.headers.get('range', ''))
        if span is None: return Response(item.content, media_type=item.mimeType)
        first, last, size = int(span[1]), int(span[2]), len(item.content)
        if first >= size: return refusal(416, 'requestedRangeNotSatisfiable')
        return Response(item.content[first:last + 1], 206, {'Content-Range': f'bytes {first}-{min(last, size - 1)}/{size}'}, item.mimeType)

    async def create(self, request):
        wanted = await request.json()
        if wanted['parents'][0] not in (*self.items, 'root'): return not_found(wanted['parents'][0])
        made = self.add(wanted['name'], parent=_real(wanted['parents'][0]), mimeType=wanted['mimeType'])
        return JSONResponse(chosen(made.record(), request.query_params['fields']))

    async def start(self, request):
        if request.query_params.get('uploadType') != 'resumable': return refusal(400, 'badRequest')
        if 'id' in request.path_params and self._item(request) is None: return not_found(request.path_params['id'])
        metadata = json.loads(await request.body() or b'{}')
        if metadata.get('parents', ['root'])[0] not in (*self.items, 'root'): return not_found(metadata['parents'][0])
        self.sessions[f'upload-{next(self.numbers)}'] = Session(metadata, int(request.headers['x-upload-content-length']), request.path_params.get('id'))
        return Response(headers={'Location': f'{request.base_url}upload/drive/v3/files?{request.url.query}&upload_id={list(self.sessions)[-1]}'})

    async def put(self, request):
        name, fault = request.query_params['upload_id'], request.scope['fault']
        if fault[0] == 'forget': self.sessions.pop(name)
        if (session := self.sessions.get(name)) is None: return not_found(name)
        span, body = request.headers.get('content-range', ''), await request.body()
        if not span.startswith('bytes */') and session.made is None:
            first = int(span.removeprefix('bytes ').split('-')[0]) if span else 0
            if first != len(session.received): return refusal(400, 'invalidRange', f'{first} is not {len(session.received)}')
            kept = body[:fault[1] // STEP * STEP] if fault[0] in ('keep', 'cut') else body
            self.received += len(kept)
            session.received += kept
            if len(session.received) % STEP and len(session.received) != session.total: return refusal(400, 'badRequest', 'not a multiple of 256 KiB')
            if len(session.received) == session.total: self._complete(session)
        if fault[0] == 'keep': return refusal(503, 'backendError')
        if fault[0] in ('cut', 'lost'): return _Lost()
        if session.made: return JSONResponse(chosen(self.items[session.made].record(), request.query_params['fields']))
        return Response(status_code=308, headers={'Range': f'bytes=0-{len(session.received) - 1}'} if session.received else {})

    def _complete(self, session):
        content, number = bytes(session.received), next(self.numbers)
        if session.target is None:
            session.made = self.add(session.metadata['name'], content, _real(session.metadata.get('parents', ['root'])[0])).id
        else:
            item, session.made = self.items[session.target], session.target
            item.content, item.revision, item.modified = content, number, number

class _Lost(Response):
    "An answer that never arrives whole."
    async def __call__(self, scope, receive, send):
        await send(dict(type='http.response.start', status=200, headers=[(b'content-length', b'100')]))
        await send(dict(type='http.response.body', body=b'{', more_body=True))
        raise ConnectionAbortedError('cut here, on purpose')

@contextmanager
def drive_server():
    "A running stand-in: `.endpoint`, `.environment` to use it, and the `Drive`."
    drive = Drive()
    with running(drive) as endpoint:
        drive.endpoint, drive.environment = endpoint, {'WHISPER_NB_DRIVE_ENDPOINT': endpoint}
        yield drive

def service_account(path, endpoint):
    "The key file of a service account whose tokens the stand-in gives out."
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    key = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path.write_text(json.dumps(dict(type='service_account', project_id='p', private_key_id='k', private_key=key, client_email='robot@example.invalid', client_id='1', token_uri=f'{endpoint}/token')))
    return path
