"Hostile input: archives and checkpoints made by hand, recordings that are none, and every parser of outside data fed with right examples gone wrong."
import base64
import faulthandler
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import warnings
import zipfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))  # for the processes that do the work

from campaign import Campaign
from whisper_nb.archive import TarReader, check_archive, parse_sidecar, read_label
from whisper_nb.audio import load_audio
from whisper_nb.compression import FORMATS, PIECE, unpacked
from whisper_nb.errors import WhisperNbError
from whisper_nb.files import Manifest, differences, is_safe_name, link_or_copy_tree, list_files, parse_manifest, read_manifest
from whisper_nb.formats import Weights, read_index, read_json, read_model_bin, read_safetensors
from whisper_nb.models import DEMO_DIR
from whisper_nb.openai_file import read_model_pt
from whisper_nb.restore import Publication, parse_publication, restore
from whisper_nb.unpack import unpack, unpack_from
from whisper_nb.verify import require_verified, verify

NAME = 'toy-ct2-int8'
SECONDS, MEMORY = 10, 300_000_000  # What a case may take; bytes beyond what the process has already


# ---- one case

def memory(what):
    "`VmRSS` or `VmHWM` of this process, in bytes."
    return next(int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(what))


def told_badly(error):
    "What is wrong with an error that a user would see; '' for one of ours in two printable lines."
    if not isinstance(error, WhisperNbError): return ' < '.join(''.join(traceback.format_exception(error)).strip().splitlines()[:-4:-1])[:400]
    bad = [line for line in (error.what, error.advice) if not line or len(line) > 2_500 or not line.isprintable()]
    return f'no printable line: {bad[0]!r:.200}' if bad else ''


class Judge:
    "Tries cases one by one, in a process that can be spared, and counts what comes of them."
    def __init__(self, campaign, journal=None): self.campaign,self.journal = campaign,journal

    def __call__(self, subject, fault, case, work, right, after=lambda: '', seconds=SECONDS, bytes=MEMORY):
        "`right` proves a result; `after` says what is wrong with the surroundings, '' when nothing is."
        if self.journal: self.journal.write_text(f'{subject}\t{fault}\t{case}')
        faulthandler.dump_traceback_later(6 * seconds, exit=True)
        try: Path('/proc/self/clear_refs').write_text('5')  # The peak begins anew
        except OSError: pass
        before, start, found, error = memory('VmRSS'), time.perf_counter(), None, None
        try:
            with redirect_stderr(io.StringIO()) as said: found = work()
        except (KeyboardInterrupt, SystemExit): raise
        except BaseException as raised: error = raised  # A panic of a library in Rust is no Exception
        took, more = time.perf_counter() - start, memory('VmHWM') - before
        try: trouble = after() or (told_badly(error) if error else '' if right(found) else f'accepted: {found!r:.200}')
        except Exception as stumbled: trouble = f'the result is not right: {stumbled!r:.200}'
        if 'Traceback' in said.getvalue(): trouble = f'{said.getvalue()[-200:]!r}; {trouble}'
        if took > seconds: trouble = f'{took:.0f} s; {trouble}'
        if more > bytes: trouble = f'{more / 1e6:.0f} MB; {trouble}'
        faulthandler.cancel_dump_traceback_later()
        self.campaign.count(subject, fault, 'lost' if trouble else 'refused' if error else 'harmless', trouble and f'{case}: {trouble}')


# ---- archives, byte by byte

def encoded(text): return text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass')


def head(name, size=0, kind=b'0', link=b'', prefix=b'', magic=b'ustar\x0000', size_field=None, checksum=None):
    "A header of a tar, with every field as it is wanted."
    body = b''.join([encoded(name)[:100].ljust(100, b'\0'), b'0000644\0', b'0000000\0' * 2, size_field or b'%011o\0' % size, b'%011o\0' % 0, b' ' * 8, kind,
        encoded(link)[:100].ljust(100, b'\0'), magic, bytes(64), b'0000000\0' * 2, encoded(prefix)[:155].ljust(155, b'\0'), bytes(12)])
    return body[:148] + (checksum or b'%06o\0 ' % sum(body)) + body[156:]


def member(name, data=b'', **fields):
    "A member of a tar; a name that is too long goes into one of GNU's extra members."
    name = encoded(name)
    long = member('././@LongLink', name + b'\0', kind=b'L') if len(name) > 100 else b''
    return long + head(name, len(data), **fields) + data + bytes(-len(data) % 512)


def base256(number): return (number % 256**11).to_bytes(11, 'big').rjust(12, b'\xff' if number < 0 else b'\x80')
def pax(kind=b'x', **records):
    lines = [f'{name.replace("__", ".")}={value}\n' for name, value in records.items()]
    return member('pax', b''.join(encoded(f'{len(line.encode()) + 3} {line}' if len(line.encode()) < 97 else f'{len(line.encode()) + 4} {line}') for line in lines), kind=kind)


def manifest(holds, /, **changes):
    "A manifest of these files: name → content, or what the entry shall be."
    entries = {name: content if isinstance(content, dict) else dict(size=len(content), sha256=hashlib.sha256(content).hexdigest()) for name, content in holds.items()}
    fields = dict(version=1, name=NAME, format='ctranslate2', source=dict(kind='local', name='toy'), made_by={}, quantization=None, made_from=None, files=entries)
    return json.dumps(fields | changes).encode()


END = bytes(1024)
FILES = {'a.json': b'{}', 'b/c.json': b'[]'}
def top(name, data=b'', **fields): return member(f'{NAME}/{name}', data, **fields)
def first(files=FILES, data=None): return top('manifest.json', manifest(files) if data is None else data)
def tar(*members, end=END): return b''.join(members) + end
def whole(files=FILES, data=None): return [first(files, data), *(top(name, content) for name, content in files.items())]


def evil_names(place):
    "Names that lead out, mean something to a system, or look like another: (what kind, name)."
    yield from (('a path that leads out', name) for name in ('../evil', 'b/../../evil', '../' * 30 + 'evil', f'{place}/evil', f'/{place}/evil', f'../../../../../../{place}/evil', './../evil', '..', '../',
        '.../evil', '....//evil', 'b/..', '~/evil', '~root/evil', '$HOME/evil', '`evil`', '../' + NAME + '/../evil', 'b/../a.json', '%2e%2e%2fevil', '..%2fevil', '..;/evil'))
    yield from (('a path of Windows', name) for name in ('C:\\evil', 'C:evil', 'C:/evil', 'c:', '\\evil', '\\\\host\\share\\evil', '//host/share/evil', '\\\\?\\C:\\evil', '\\\\.\\NUL', '\\??\\C:\\evil', '..\\evil',
        '..\\..\\..\\evil', '..\\../evil', 'b\\..\\..\\evil', 'b/..\\..\\evil', '%APPDATA%\\evil', 'a.json:evil', 'a.json::$DATA', 'a.json.', 'a.json ', 'a.json. .', ' a.json', 'b /c', 'b./c', 'a?', 'a*', 'a|b', 'a<b', 'a"b', 'PROGRA~1'))
    yield from (('a reserved name of Windows', name) for name in ('CON', 'con', 'PRN', 'AUX', 'NUL', 'nul', 'aux.bin', 'NUL.tar.gz', 'con.json', 'COM1', 'com1.json', 'COM9.bin', 'LPT1', 'lpt9.txt', 'COM0', 'b/aux', 'aux/c.json',
        'b/NUL.json', 'CON .txt', 'CONIN$', 'CONOUT$', 'CLOCK$', 'COM¹', 'com².bin'))
    yield from (('an odd path', name) for name in ('./a.json', 'b/./c.json', 'b//c.json', 'a.json/', '/a.json', '.', '', 'b/', 'a' * 256, 'd/' * 130 + 'a', 'd/' * 2_100 + 'a', 'a' * 70_000, 'a\0.json', '../evil\0a.json', 'a\nb',
        'a\rb', 'a\x1b[2Jb', 'a\x7f', 'a\tb', '\x08a', '-rf', '--help', '.bashrc', '.git/hooks/post-checkout', '.staging/a', '.locks/a', 'manifest.json', 'Manifest.json', 'MANIFEST.JSON', 'manifest.json/a', 'model.sig/a', 'b'))
    yield from (('a name of Unicode', name) for name in ('．．／evil', '..\uff0fevil', '..\u2215evil', '..\u2044evil', '\u2024\u2024/evil', '\u2025/evil', '\uff0e\uff0e/evil', '..\uff3cevil', 'a\u202egpj.json', 'a\u2066b', 'a\u200b.json', 'a\u00ad.json',
        'a\u200d.json', '\ufeffa.json', 'а.json', 'é', 'e\u0301', '\u212a', 'ſ', 'ﬁ', 'İ', 'a\u00a0', 'a\u3000', 'a\ud800', '\u2028', '\U000e0061', b'\xc0\xae\xc0\xae/evil', b'\xc0\xafevil', b'\xff\xfe', b'a\x80'))


def named(place):
    "Archives with those names: on the member alone, in the manifest too, and as the model's directory."
    for fault, name in evil_names(place):
        text = name.decode('utf-8', 'replace') if isinstance(name, bytes) else name
        yield fault, f'{name!r:.60}', tar(*whole(), member(f'{NAME}/'.encode() + encoded(name), b'{}')), FILES
        yield fault, f'{name!r:.60} alone', tar(*whole(), member(name, b'{}')), FILES
        files = {**FILES, text: b'{}'}
        yield fault, f'{name!r:.60} listed', tar(*whole(), member(f'{NAME}/'.encode() + encoded(name), b'{}')).replace(first(), first(files)), files
        directory = encoded(name).rstrip(b'/') or b'/'
        yield fault, f'{name!r:.60} as the directory', tar(member(directory + b'/manifest.json', manifest({'a.json': b'{}'})), member(directory + b'/a.json', b'{}')), {'a.json': b'{}'}
    for prefix, name in (('..', 'evil'), (f'{NAME}/..', 'evil'), (f'{place}', 'evil'), (f'{NAME}/b', '../../evil'), ('/', 'evil'), (f'{NAME}/b\0', 'evil')):
        yield 'a path that leads out', f'{prefix!r} before {name!r}', tar(*whole(), member(name, b'{}', prefix=prefix)), FILES


def members_of_other_kinds(place):
    "Links, devices, FIFOs and every other type there is."
    out, inside = f'{place}/secret.txt', '../../../../secret.txt'
    for kind, what in ((b'1', 'a hard link'), (b'2', 'a symbolic link')):
        for target in (out, inside, f'{place}', '..', '/etc/passwd', 'a.json', f'{NAME}/a.json', '.', '', 'a' * 100, '/proc/self/root', '//', 'b/../../..'):
            yield what, f'to {target!r:.40}', tar(first(), top('a.json', kind=kind, link=target), top('b/c.json', b'[]')), FILES
            yield what, f'to {target!r:.40}, then written through', tar(*whole(), top('d', kind=kind, link=target), top('d', b'evil'), top('d/evil', b'evil')), FILES
            yield what, f'to {target!r:.40} in place of a directory', tar(first(), top('a.json', b'{}'), top('b', kind=kind, link=target), top('b/c.json', b'[]')), FILES
    yield 'a symbolic link', 'in place of the model', tar(member(NAME, kind=b'2', link=f'{place}'), *whole()), FILES
    yield 'a symbolic link', 'in place of the manifest', tar(top('manifest.json', kind=b'2', link=out), top('a.json', b'{}')), FILES
    yield 'a chain of links', 'out, step by step', tar(*whole(), *(top(f'l{place}', kind=b'2', link=f'l{place + 1}/..') for place in range(20)), top('l0/evil', b'evil')), FILES
    part, path = 'd' * 80, ''  # The kind of CVE-2025-4517: links that are too long to resolve, then one that leads out through them
    steps = []
    for letter in 'abcdefgh':
        steps += [top(f'{path}{part}', kind=b'5'), top(f'{path}{letter}', kind=b'2', link=part)]
        path += f'{letter}/'
    steps += [top(f'{path}l', kind=b'2', link='../' * 8), top('escape', kind=b'2', link=f'{path}l/../../../..'), top('hard', kind=b'1', link='escape/secret.txt'), top('hard', b'evil')]
    yield 'a chain of links', 'too long to resolve', tar(*whole(), *steps), FILES
    yield 'a chain of links', 'too long to resolve, first', tar(*steps, *whole()), FILES
    for number in range(256):
        yield 'a member of another kind', f'type {number}', tar(first(), top('a.json', b'{}', kind=bytes([number])), top('b/c.json', b'[]')), FILES
        yield 'a member of another kind', f'type {number}, empty, first of all', tar(head(NAME, kind=bytes([number])), *whole()), FILES
    for magic in (b'ustar  \0', b'\0' * 8, b'GNUtar \0', b'ustar\x0099'):
        yield 'a member of another kind', f'magic {magic!r}', tar(first(), top('a.json', b'{}', magic=magic), top('b/c.json', b'[]')), FILES
    sparse = dict(GNU__sparse__major='1', GNU__sparse__minor='0', GNU__sparse__name=f'{place}/evil', GNU__sparse__realsize=str(10**15))
    for what, records in dict(path=dict(path=f'{place}/evil'), relative=dict(path='../../evil'), size=dict(size='2'), huge=dict(size=str(2**62)), negative=dict(size='-1'), link=dict(linkpath=out), sparse=sparse,
            charset=dict(hdrcharset='BINARY', path='x'), comment=dict(comment='nothing'), times=dict(mtime='1e400'), own=dict(SCHILY__xattr__user__evil='1', uid=str(10**30))).items():
        for kind in b'xgX':
            for before in (True, False):
                extra = pax(bytes([kind]), **records)
                yield 'a PAX header', f'{what}, {chr(kind)}, {"first" if before else "second"}', tar(*[extra] * before, first(), *[extra] * (not before), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
    for kind, text in ((b'L', f'{place}/evil'), (b'K', out), (b'L', 'x' * 5_000), (b'L', ''), (b'S', 'evil'), (b'N', 'evil'), (b'V', 'evil'), (b'M', 'evil'), (b'D', 'evil')):
        yield "one of GNU's extra members", f'{kind!r} {text[-10:]!r}', tar(first(), member('././@LongLink', encoded(text) + b'\0', kind=kind), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES


def sizes():
    "Sizes that are not those of what follows."
    for what, field in {'as it is, in base 256': base256(2), 'negative, in base 256': base256(-2), 'huge, in base 256': base256(2**80), 'half of it': base256(2**63), 'with a plus': b'+2'.ljust(12), 'with a minus': b'-2'.ljust(12), 'hexadecimal': b'0x2'.ljust(12),
            'with a line': b'0_2'.ljust(12), 'nothing': b' ' * 12, 'zeros': bytes(12), 'octal to the end': b'000000000002', 'no digits': b'99999999999\0', 'eight gigabytes': b'7' * 11 + b'\0', 'three': b'%011o\0' % 3, 'one': b'%011o\0' % 1, 'not ASCII': b'\xb2'.ljust(12)}.items():
        yield 'a size that is wrong', what, tar(first(), head(f'{NAME}/a.json', size_field=field) + b'{}'.ljust(512, b'\0'), top('b/c.json', b'[]')), FILES
    for size in (2**31, 2**40, 2**62, 10**18, 2**63 - 1, 2**63, 10**30, -1, 2.0, True, '2', None, [2]):
        entry = {**FILES, 'a.json': dict(size=size, sha256=hashlib.sha256(b'{}').hexdigest())}
        field = base256(size) if isinstance(size, int) and abs(size) < 256**10 else None
        yield 'a size that is wrong', f'{size!r} in the manifest', tar(first(entry), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
        yield 'a size that is wrong', f'{size!r} in both', tar(first(entry), head(f'{NAME}/a.json', 2, size_field=field) + b'{}'.ljust(512, b'\0'), top('b/c.json', b'[]')), FILES
    yield 'a size that is wrong', 'of the manifest, huge', tar(head(f'{NAME}/manifest.json', size_field=base256(2**50)), *whole()), FILES
    yield 'a size that is wrong', 'of the manifest, negative', tar(head(f'{NAME}/manifest.json', size_field=base256(-5)), *whole()), FILES
    yield 'a header that is wrong', 'checksum', tar(first(), top('a.json', b'{}', checksum=b'000000\0 '), top('b/c.json', b'[]')), FILES
    yield 'a header that is wrong', 'checksum of nothing', tar(first(), top('a.json', b'{}', checksum=b' ' * 8), top('b/c.json', b'[]')), FILES
    yield 'a header that is wrong', 'bytes that fill up', tar(first(), (head(f'{NAME}/a.json', 2) + b'{}').ljust(1024, b'?'), top('b/c.json', b'[]')), FILES


def lists():
    "Names that clash, and manifests that are not what they should be."
    def pair(one, other): return {one: b'{}', other: b'[]'}
    for one, other in (('a', 'A'), ('a/b', 'A/c'), ('straße', 'STRASSE'), ('é', 'e\u0301'), ('a', 'a/b'), ('a/b', 'a'), ('A', 'a/b'), ('a/b/c', 'a/B'), ('k', '\u212a'), ('i', 'İ'), ('a.json', 'а.json'), ('a', 'a.'), ('a', 'a ')):
        yield 'names that clash', f'{one!r} and {other!r}', tar(*whole(pair(one, other))), pair(one, other)
    yield 'a file twice', 'the same', tar(*whole(), top('a.json', b'{}')), FILES
    yield 'a file twice', 'another content', tar(*whole(), top('a.json', b'[]')), FILES
    yield 'a file twice', 'the manifest', tar(first(), first(), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
    yield 'a file twice', 'the signature', tar(first(), top('model.sig', b'{}'), top('model.sig', b'{}'), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
    yield 'a file that is missing', 'a file', tar(first(), top('a.json', b'{}')), FILES
    yield 'a file that is missing', 'all', tar(first()), FILES
    yield 'a file that is missing', 'the manifest', tar(top('a.json', b'{}')), FILES
    yield 'a file that is missing', 'everything', tar(), FILES
    yield 'a manifest elsewhere', 'last', tar(top('a.json', b'{}'), top('b/c.json', b'[]'), first()), FILES
    yield 'a manifest elsewhere', 'second', tar(top('a.json', b'{}'), first(), top('b/c.json', b'[]')), FILES
    for name in ('Manifest.json', 'manifest.JSON', 'b/manifest.json', 'manifest.json.', './manifest.json', 'manifest.json\0x'): yield 'a manifest elsewhere', name, tar(top(name, manifest(FILES)), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
    yield 'a manifest elsewhere', 'at the top', tar(member('manifest.json', manifest(FILES)), top('a.json', b'{}'), top('b/c.json', b'[]')), FILES
    good = manifest(FILES)
    deep = lambda depth: b'[' * depth + b']' * depth
    odd = {'not JSON': b'{', 'a list': b'[]', 'a number': b'1', 'nothing': b'', 'null': b'null', 'with a mark of its order': b'\xef\xbb\xbf' + good, 'UTF-16': good.decode().encode('utf-16'), 'UTF-32': good.decode().encode('utf-32'), 'not UTF-8': b'\xff' + good,
        'lists in lists': deep(400_000), 'a source too deep to write': manifest(FILES, source=dict(kind='local', name='toy', more='@')).replace(b'"@"', deep(480)), 'tools too deep to write': manifest(FILES, made_by=dict(tool='@')).replace(b'"@"', deep(940)),
        'an endless number': good.replace(b'"version": 1', b'"version": ' + b'1' * 100_000), 'not a number': manifest(FILES, source=dict(kind='local', name=float('nan'))), 'no version': good.replace(b'"version"', b'"Version"'), 'version 2': good.replace(b'"version": 1', b'"version": 2'),
        'another field': manifest(FILES, evil=1), 'a name twice': good[:-1] + b', "files": {}}', 'files in a list': manifest(FILES, files=[]), 'no files': manifest({}), 'too large': good + b' ' * (2 << 20), 'a name that is none': manifest(FILES, name='\ud800\x1b[2J')}
    for what, data in odd.items(): yield 'a manifest that is none', what, tar(*whole(data=data)), FILES
    for key in ('name', 'format', 'source', 'made_by', 'quantization', 'made_from', 'files', 'version'):
        for value in (None, 1, True, 1e300, 'x', [], {}, [1], {'a': 1}, '\x1b[2J\n'): yield 'a manifest that is none', f'{key} is {value!r}', tar(*whole(data=manifest(FILES, **{key: value}))), FILES
    for key in ('size', 'sha256'):
        for value in (None, '', 'x', '0' * 64, 'F' * 64, '٣' * 64, 1, -1, True, [], {}, '0' * 63 + '\n'): yield 'a manifest that is none', f'{key} of a file is {value!r:.20}', tar(*whole(data=manifest({**FILES, 'a.json': {'size': 2, 'sha256': hashlib.sha256(b'{}').hexdigest()} | {key: value}}))), FILES


def endings():
    "What comes after the end, or in place of it."
    good = tar(*whole())
    for what, end in {'no mark': b'', 'half a mark': bytes(512), 'a byte more': END + b'?', 'zeros': END + bytes(8_192), 'many zeros': END + bytes(3 * PIECE), 'another archive': END + good, 'another archive behind zeros': END + bytes(8_192) + good,
            'a member behind the mark': END + member('../evil', b'evil'), 'a member behind half a mark': bytes(512) + member('../evil', b'evil') + END, 'text': b'the end', 'half a block': bytes(100), 'not zeros': bytes(1_000) + b'evil' * 6}.items():
        yield 'something at the end', what, tar(*whole(), end=end), FILES
    for cut in (1, 100, 511, 512, 513, 700, 1_024, 1_500): yield 'something at the end', f'cut off after {cut}', good[:cut], FILES


def all_archives(place):
    for make in (partial(named, place), partial(members_of_other_kinds, place), sizes, lists, endings): yield from make()


def zstd():
    "Zstandard, wherever this Python has it."
    try: from compression import zstd
    except ImportError: from backports import zstd
    return zstd


def pack_pieces(format, data): return b''.join(FORMATS[format].pack(data[start:start + PIECE]) for start in range(0, len(data), PIECE)) or FORMATS[format].pack(b'')
def pack_stream(format, data): return {'tar.gz': partial(gzip.compress, compresslevel=1), 'tar.zst': zstd().compress, 'tar': bytes}[format](data)


# ---- what is around them

def snapshot(place):
    "Everything there is, links by their targets; locks and what archives are read from are left out."
    found = {}
    for folder, directories, names in os.walk(place):
        directories[:] = [name for name in directories if (Path(folder)/name) != place/'in' and name != '.locks']
        for name in [*directories, *names]:
            path = Path(folder)/name
            if path.is_symlink(): found[str(path)] = 'to ' + os.readlink(path)
            elif path.is_dir(): found[str(path)] = 'directory'
            else: found[str(path)] = path.read_bytes() if path.is_file() else 'special'
    return {path: what for path, what in found.items() if not (what == 'directory' and path.endswith('/.staging'))}


class Surroundings:
    "A tree of files around the place where models are unpacked: nothing in it may change."
    def __init__(self, place):
        self.place,self.dest = place,place/'1'/'2'/'3'/'models'
        for path in (place/'in', place/'etc', self.dest): path.mkdir(parents=True)
        (place/'secret.txt').write_text('secret')
        (place/'etc'/'passwd').write_text('root')
        (place/'1'/'link').symlink_to(place/'secret.txt')
        (place/'1'/'linked').symlink_to('../etc')
        self.old = {'config.json': b'{"old": 1}', 'model.bin': b'old'}

    def put_old(self):
        "A model under the same name, which stays unless the new one is right."
        shutil.rmtree(self.dest/NAME, ignore_errors=True)
        for name, content in self.old.items(): self._write(self.dest/NAME/name, content)
        self._write(self.dest/NAME/'manifest.json', manifest(self.old))

    @staticmethod
    def _write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def clear(self): shutil.rmtree(self.dest/NAME, ignore_errors=True)


def holds(directory, files):
    "Is a directory exactly this model?"
    found = read_manifest(directory)
    contents = {name: (directory/name).read_bytes() for name in list_files(directory)}
    return contents == files and found is not None and not differences(directory, found) and all(map(is_safe_name, contents))


WAYS = {
    'unpack': lambda path, dest: unpack(path, dest),
    'unpack_from': lambda path, dest: unpack_from(io.BytesIO(path.read_bytes()), path.name, dest, {}).path,
    'restore': lambda path, dest: restore(str(path), str(dest)).path,
    'check_archive': lambda path, dest: (check_archive(path), None)[1]}


def try_archive(judge, around, fault, case, path, files, kept, ways=WAYS, **limits):
    "One archive, by all ways in."
    for way in ways:
        around.put_old() if kept else around.clear()
        before = snapshot(around.place)
        def after():
            now = snapshot(around.place)
            changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name) and not (made and Path(name).is_relative_to(made[0])))
            return f'changed: {changed[:3]}' if changed else ''
        made = []
        def work():
            if found := WAYS[way](path, around.dest): made.append(found)
            return found
        def right(found): return found is None or found.parent == around.dest and holds(found, files)
        judge('an archive', fault, f'{case} ({path.name}, {way})', work, right, after, **limits)
        for found in made: shutil.rmtree(found, ignore_errors=True)


def archives(judge, work, size, part=0, parts=1, only=None):
    "Every archive of the list; in the short form each in one format, in the full one in all, over nothing and over an old model."
    around = Surroundings(work/'archives')
    for number, (fault, case, data, files) in enumerate(all_archives(around.place)):
        if number % parts != part or only and fault not in only: continue
        if size == 'short' and fault == 'a member of another kind' and case.startswith('type') and number % 6: continue
        for turn, format in enumerate(FORMATS):
            if size == 'short' and turn != number % len(FORMATS): continue
            path = around.place/'in'/f'{NAME}.{format}'
            path.write_bytes((pack_pieces if (number + turn) % 2 else pack_stream)(format, data))
            ways = [list(WAYS)[number // 2 % 4]] if size == 'short' else WAYS
            try_archive(judge, around, fault, case, path, files, kept=bool(number % 2), ways=ways)


# ---- bombs, and what is around the tar

def zeros_behind(format, start, count):
    "What begins as an archive and goes on with zeros, many of them, in few bytes."
    if format == 'tar': return start + bytes(min(count, 50_000_000))
    if format == 'tar.zst':
        stream = zstd().ZstdCompressor()
        return b''.join([stream.compress(start), *(stream.compress(bytes(10_000_000)) for _ in range(count // 10_000_000)), stream.flush()])
    import zlib
    stream = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b''.join([stream.compress(start), *(stream.compress(bytes(10_000_000)) for _ in range(count // 10_000_000)), stream.flush()])


def bomb_files(format, size):
    "What grows when it is unpacked, and archives put together wrongly: (fault, case, bytes, files)."
    good, huge = tar(*whole()), 400_000_000 if size == 'short' else 1_500_000_000
    start = first({'a.json': dict(size=huge, sha256='0' * 64)}) + head(f'{NAME}/a.json', size_field=base256(huge))
    yield 'a bomb', 'zeros behind the end', zeros_behind(format, good, huge), FILES
    if size == 'full':
        yield 'a bomb', 'a file of zeros with another hash', zeros_behind(format, start, 400_000_000 if format == 'tar' else huge), FILES
        yield 'a bomb', 'zeros from the first byte', zeros_behind(format, b'', huge), FILES
    if format != 'tar':
        yield 'a bomb', 'a piece of hundreds of megabytes', FORMATS[format].pack(bytes(huge // 4)), FILES
        yield 'a bomb', 'pieces of hundreds of megabytes, later', pack_pieces(format, start) + FORMATS[format].pack(bytes(huge // 4)) * 3, FILES
        yield 'a bomb', 'an archive in an archive', pack_stream(format, zeros_behind(format, good, huge)), FILES
        yield 'a bomb', 'compressed twice', pack_stream(format, pack_stream(format, good)), FILES
        yield 'a bomb', 'a million empty pieces', FORMATS[format].pack(good[:512]) + FORMATS[format].pack(b'') * (1_000_000 if size == 'full' else 50_000), FILES
        yield 'two archives in one', 'streams', pack_stream(format, good) * 2, FILES
        yield 'two archives in one', 'pieces and a stream', pack_pieces(format, good) + pack_stream(format, good), FILES
        yield 'two archives in one', 'half and half', pack_stream(format, good[:700]) + pack_stream(format, good[700:]), FILES
        yield 'something at the end', 'of the stream', pack_stream(format, good) + b'evil', FILES
        yield 'something at the end', 'of the pieces', pack_pieces(format, good) + b'evil', FILES
        yield 'something at the end', 'zeros behind the stream', pack_stream(format, good) + bytes(100_000), FILES
        for cut in (1, 5, 11, 19, 25, 60): yield 'something at the end', f'cut off after {cut} bytes', pack_stream(format, good)[:cut], FILES
    if format == 'tar.gz':
        deflated = gzip.compress(good, 1)
        for what, front in {'a name without end': b'\x1f\x8b\x08\x08' + bytes(6) + b'a' * (50_000_000), 'a field of 64 kB': b'\x1f\x8b\x08\x04' + bytes(6) + b'\xff\xff' + bytes(65_535) + deflated[10:], 'flags that mean nothing': b'\x1f\x8b\x08\xe0' + deflated[4:],
                'another method': b'\x1f\x8b\x07' + deflated[3:], 'a header with a wrong sum': b'\x1f\x8b\x08\x02' + deflated[4:10] + b'??' + deflated[10:], 'a wrong sum at the end': deflated[:-8] + b'????' + deflated[-4:], 'a wrong size at the end': deflated[:-4] + b'????'}.items():
            yield 'a stream that is wrong', what, front, FILES
    if format == 'tar.zst':
        frame = zstd().compress(good)
        for window in (27, 28, 31):
            options = {zstd().CompressionParameter.window_log: window, zstd().CompressionParameter.compression_level: 1}
            stream = zstd().ZstdCompressor(options=options)
            yield 'a stream that is wrong', f'a window of 2^{window}', b''.join([stream.compress(good), *(stream.compress(bytes(10_000_000)) for _ in range(40)), stream.flush()]), FILES
        yield 'a stream that is wrong', 'a frame of 2^63', frame[:4] + b'\xe0' + struct.pack('<Q', 2**63) + frame[6:], FILES
        yield 'a stream that is wrong', 'a frame to pass over, of 4 GB', struct.pack('<II', 0x184d2a50, 2**32 - 1) + frame, FILES
        yield 'a stream that is wrong', 'a frame to pass over, of 4 bytes, then a stream', struct.pack('<II', 0x184d2a50, 4) + b'evil' + frame, FILES
        yield 'a stream that is wrong', 'a dictionary', frame[:4] + bytes([frame[4] | 1]) + b'\x07' + frame[5:], FILES
        yield 'a stream that is wrong', 'frames to pass over, many', struct.pack('<II', 0x184d2a5f, 0) * 200_000 + frame, FILES


def bombs(judge, work, size):
    around = Surroundings(work/'bombs')
    for turn, format in enumerate(FORMATS):
        for number, (fault, case, data, files) in enumerate(bomb_files(format, size)):
            path = around.place/'in'/f'{NAME}.{format}'
            path.write_bytes(data)
            ways = [list(WAYS)[(number + turn) % 4]] if size == 'short' else WAYS
            roomy = dict(bytes=300_000_000) if 'window' in case else {}  # 128 MB may be asked for, as by the zstd program
            try_archive(judge, around, fault, case, path, files, kept=True, ways=ways, seconds=30 if size == 'full' else SECONDS, **roomy)
    count = 200 if size == 'short' else 3_000
    many = {f'f{number}': b'\0' * 1_000 for number in range(count)}
    path = around.place/'in'/f'{NAME}.tar.gz'
    path.write_bytes(pack_stream('tar.gz', tar(*whole(many))))
    try_archive(judge, around, 'many members', f'{count} files of zeros', path, many, kept=False, seconds=60)
    beside(judge, around)


def beside(judge, around):
    "Checksum files that are none; and a right one, which must do."
    path = around.place/'in'/f'{NAME}.tar.gz'
    path.write_bytes(pack_pieces('tar.gz', tar(*whole())))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    line, wrong = f'{digest}  {path.name}\n', f"{'0' * 64}  {path.name}\n"
    for what, text in {'right': line, 'with a star': line.replace('  ', ' *'), 'with a carriage return': line.replace('\n', '\r\n'), 'in capitals': line.upper().replace(path.name.upper(), path.name), 'two lines': line + wrong, 'two lines, the right one last': wrong + line, 'twice': line * 2,
            'another name': line.replace(path.name, 'other.tar.gz'), 'a path': line.replace(path.name, f'./{path.name}'), 'wrong': wrong, 'empty': '', 'digest alone': digest, 'another algorithm': f"{'0' * 32}  {path.name}\n", 'an escaped name': '\\' + line, 'a comment': '# \n' + line,
            'BSD': f'SHA256 ({path.name}) = {digest}\n', 'ten megabytes': line.strip() + ' ' * 10_000_000, 'other digits': line.replace(digest, '٠' * 64), 'no text': '\udcff\udcfe'}.items():
        path.with_name(f'{path.name}.sha256').write_bytes(text.encode('utf-8', 'surrogateescape'))
        try_archive(judge, around, 'a checksum file', what, path, FILES, kept=True, ways=['unpack', 'check_archive', 'restore'])
    path.with_name(f'{path.name}.sha256').unlink()
    for what, make in {'a directory': Path.mkdir, 'a FIFO': os.mkfifo, 'a link to nothing': lambda each: each.symlink_to('nothing')}.items():
        make(path.with_name(f'{path.name}.md5'))
        try_archive(judge, around, 'a checksum file', what, path, FILES, kept=True, ways=['unpack', 'check_archive'])
        each = path.with_name(f'{path.name}.md5')
        each.rmdir() if each.is_dir() else each.unlink()


# ---- files of checkpoints, byte by byte

def safetensors(header, data=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header) if length is None else length) + header + data


def tensor(dtype='F32', shape=(1,), offsets=(0, 4)): return dict(dtype=dtype, shape=shape if not isinstance(shape, tuple) else list(shape), data_offsets=offsets if not isinstance(offsets, tuple) else list(offsets))


def safetensors_files(size):
    four, most = bytes(4), 3_900_000 if size == 'short' else 30_000_000
    for length in (2**63, 2**64 - 1, 2**63 - 1, 2**40, 10**8, 10**8 + 1, 0, 1, 10**6): yield 'a length that is wrong', f'{length}', safetensors(dict(a=tensor()), four, length)
    for what, header in {'nothing': b'', 'not JSON': b'{', 'a list': b'[]', 'null': b'null', 'a number': b'1', 'text': b'"a"', 'a name twice': b'{"a": 1, "a": 2}', 'NaN': b'{"a": NaN}', 'not UTF-8': b'{"\xff": 1}', 'UTF-16': '{}'.encode('utf-16'), 'a mark of its order': b'\xef\xbb\xbf{}',
            'lists in lists': b'[' * 300_000 + b']' * 300_000, 'objects in objects': b'{"a":' * 100_000, 'an endless number': b'{"a": ' + b'1' * 100_000 + b'}', 'half a pair': b'{"a": "\\ud800"}', 'two values': b'{}{}', 'NUL': b'{}\0',
            'many lists': b'{"a":[' + b'[],' * (most // 3) + b'[]]}', 'many tensors of nothing': json.dumps({f't{number}': tensor(shape=(0,), offsets=(0, 0)) for number in range(most // 60)}).encode(), 'a name of megabytes': b'{"' + b'a' * most + b'": 1}'}.items():
        yield 'a header that is none', what, safetensors(header, four)
    for what, entry in {'a list': [], 'null': None, 'a number': 1, 'text': 'F32', 'nothing': {}}.items(): yield 'an entry that is none', what, safetensors(dict(a=entry), four)
    for dtype in ('F7', '', 'f32', 'F32 ', 'F128', 'C64', None, 1, True, [], ['F32'], {}): yield 'a type that is none', repr(dtype), safetensors(dict(a=tensor(dtype)), four)
    for shape in ([-1], [-1, -1], [2**32, 2**32], [2**63, 2], [2**62, 4], [2**64 + 1], [10**30], [1.0], [True], ['1'], [None], [[1]], 1, None, '1', {}, [1] * 9, [1] * 100_000, [0], [0, 10**18], [2], [], [2**31, 2**31, 2**2]):
        yield 'a shape that is wrong', f'{shape!r:.40}', safetensors(dict(a=tensor(shape=shape)), four)
    for offsets in ([4, 0], [0, 5], [0, 3], [1, 5], [-4, 0], [0, -4], [2**63, 2**63 + 4], [2**64 - 4, 2**64], [0.0, 4.0], [True, 4], ['0', '4'], [0], [0, 4, 8], [], None, 0, {}, [None, 4], [0, 10**30], [10**18, 10**18 + 4]):
        yield 'offsets that are wrong', f'{offsets!r:.40}', safetensors(dict(a=tensor(offsets=offsets)), four)
    for what, (one, other, data) in {'an overlap': ((0, 4), (0, 4), 4), 'half an overlap': ((0, 4), (2, 6), 6), 'a gap': ((0, 4), (8, 12), 12), 'a gap at the front': ((4, 8), (8, 12), 12), 'past the end': ((0, 4), (4, 8), 4), 'bytes left over': ((0, 4), (4, 8), 9), 'one inside the other': ((0, 4), (1, 5), 5)}.items():
        yield 'tensors that do not fit', what, safetensors(dict(a=tensor(offsets=one), b=tensor(offsets=other)), bytes(data))
    for value in ([], 'a', 1, None): yield 'an entry that is none', f'metadata {value!r}', safetensors(dict(a=tensor(), __metadata__=value), four)
    for name in ('', 'a\n', '\x1b[2J', 'a' * 100_000, '../a', '\ud800', '\u202e'): yield 'a name that is odd', f'{name!r:.20}', safetensors({name: tensor(shape=(2,))}, four)
    for data in (b'', b'\0' * 7, b'PK\x03\x04' + bytes(60), b'\x80\x02}.', b'<!doctype html><html>', b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n'): yield 'another file', f'{data[:10]!r}', data


def text_field(text): return struct.pack('<H', len(text) + 1) + text + b'\0'
def variable(name=b'a', shape=(1,), kind=0, size=None, data=b'\0' * 4, axes=None):
    head = text_field(name) + struct.pack('<B', len(shape) if axes is None else axes) + b''.join(struct.pack('<I', each) for each in shape)
    return head + struct.pack('<BI', kind, len(data) if size is None else size) + data


def model_bin(*variables, version=6, specification=b'WhisperSpec', revision=3, count=None, aliases=b'\0\0\0\0'):
    return struct.pack('<I', version) + text_field(specification) + struct.pack('<II', revision, len(variables) if count is None else count) + b''.join(variables) + aliases


def model_bin_files(size):
    good = model_bin(variable())
    for number in range(len(good)): yield 'an end too early', f'after {number} bytes', good[:number]
    for version in (0, 1, 3, 7, 255, 2**31, 2**32 - 1): yield 'a number that is wrong', f'version {version}', model_bin(variable(), version=version)
    for count in (0, 2, 100_000, 100_001, 2**31, 2**32 - 1):
        yield 'a number that is wrong', f'{count} variables', model_bin(variable(), count=count)
        yield 'a number that is wrong', f'{count} aliases', model_bin(variable(), aliases=struct.pack('<I', count or 1))
    for name in (b'', b'\n', b'\x1b[2J', b'\xff', b'a\0b', b'a' * 65_000, '\u202e'.encode()):
        yield 'a name that is odd', f'{name!r:.20}', model_bin(variable(name, shape=(2,)))
        yield 'a name that is odd', f'{name!r:.20} of the specification', model_bin(variable(), specification=name)
    yield 'a name that is odd', 'of no length', good.replace(text_field(b'a'), b'\0\0')
    yield 'a name that is odd', 'without an end', good.replace(text_field(b'a'), b'\2\0ab')
    yield 'a name that is odd', 'longer than the file', good.replace(text_field(b'a'), b'\xff\xffab')
    for axes in (2, 8, 9, 255): yield 'a shape that is wrong', f'{axes} axes', model_bin(variable(axes=axes))
    for shape in ((0,), (2,), (2**32 - 1,), (2**32 - 1,) * 8, (65_536, 65_536), (2**31, 2), (2**30, 2**30, 2**4), (0, 2**32 - 1)): yield 'a shape that is wrong', repr(shape), model_bin(variable(shape=shape))
    for kind in (6, 7, 127, 255): yield 'a type that is none', str(kind), model_bin(variable(kind=kind))
    for count in (0, 3, 5, 2**31, 2**32 - 1): yield 'a size that is wrong', str(count), model_bin(variable(size=count))
    yield 'names that clash', 'a variable twice', model_bin(variable(), variable())
    for what, alias in {'of nothing': (b'b', b'nothing'), 'of itself': (b'b', b'b'), 'of a variable that is there': (b'a', b'a'), 'odd': (b'\n', b'a')}.items(): yield 'names that clash', f'an alias {what}', model_bin(variable(), aliases=struct.pack('<I', 1) + text_field(alias[0]) + text_field(alias[1]))
    yield 'something at the end', 'a byte', good + b'?'
    yield 'something at the end', 'another model', good * 2
    if size == 'full': yield 'a name that is odd', '20,000 long ones', model_bin(*(variable(b'%05d' % number + b'a' * 60_000) for number in range(5_000)))


def model_pt(description, entries=None, top='model', method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as archive:
        archive.writestr(f'{top}/data.pkl', description)
        for name, data in (entries or {}).items(): archive.writestr(f'{top}/{name}', data)
    return file.getvalue()


def model_pt_files(size):
    good = model_pt(b'\x80\x02}q\x00.')
    for what, data in {'nothing': b'', 'a pickle': b'\x80\x02}.', 'no directory': good[:-22], 'only a directory': good[-22:], 'text in front': b'evil' * 100 + good, 'text behind': good + b'evil', 'compressed': model_pt(b'\x80\x02}.' * 1, method=zipfile.ZIP_DEFLATED), 'no entries': model_pt(b'')[:0] + zip_of({}),
            'a bomb': model_pt(b'\x80\x02}.' + bytes(300_000_000), method=zipfile.ZIP_DEFLATED), 'encrypted': flagged(good, 1), 'patched': flagged(good, 32), 'strongly encrypted': flagged(good, 64), 'names in UTF-8 that are none': flagged(good, 0x800).replace(b'model/data', b'\xffodel/data'),
            'a path': model_pt(b'\x80\x02}.', top='../evil'), 'an absolute path': model_pt(b'\x80\x02}.', top='/evil'), 'a directory at 2^32': good[:-6] + struct.pack('<I', 2**32 - 2) + good[-2:], 'a directory of 2^32': good[:-10] + struct.pack('<I', 2**32 - 2) + good[-6:], '65535 entries': good[:-12] + b'\xff\xff' + good[-10:]}.items():
        yield 'a file of torch that is none', what, data
    trap = b"cos\nsystem\n(S'touch SPRUNG'\ntR."
    traps = {'a call of a module': b'\x80\x02' + trap, 'by a name on the stack': b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch SPRUNGq\x00\x85R.', 'an instance': b"(S'touch SPRUNG'\nios\nsystem\n.", 'an object': b"(cos\nsystem\nS'touch SPRUNG'\no.", 'eval': b"cbuiltins\neval\n(S'1'\ntR.",
        'a class': b'\x80\x02cbuiltins\nobject\n)\x81.', 'a state': b'\x80\x02cbuiltins\nobject\n)\x81}b.', 'an extension': b'\x80\x02\x82\x01.', 'a name with dots': b'\x80\x04\x8c\x05torch\x8c\x09os.system\x93.', "torch's own loader": b'\x80\x02ctorch\nload\n.', 'of numpy': b'\x80\x02cnumpy.core.multiarray\n_reconstruct\n.',
        'another identity': b'\x80\x02U\x01aQ.', 'no identity': b'\x80\x02Q.', 'buffers': b'\x80\x05\x97.', 'a module of numbers': b'\x80\x02ctorch.storage\n_load_from_bytes\n(S\'a\'\ntR.', 'an endless number': b'\x80\x02\x8a\xff' + b'\xff' * 255 + b'.', 'a number in text': b'\x80\x02L' + b'9' * 100_000 + b'L\n.'}
    for what, data in traps.items():
        yield 'a pickle with a trap', what, model_pt(data)
        yield 'a pickle with a trap', f'{what}, deep inside', model_pt(b'\x80\x02}q\x00(X\x04\x00\x00\x00dims}X\x10\x00\x00\x00model_state_dict' + data[2 * data.startswith(b'\x80'):-1] + b'u.')
    if size == 'full': yield 'a file of torch that is none', 'a million entries', zip_of({f'model/{number}': b'' for number in range(300_000)})


def zip_of(entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, data in entries.items(): archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def flagged(data, flag):
    "The same zip with a flag set on its first entry, in both places."
    data, central = bytearray(data), data.index(b'PK\x01\x02')
    data[6:8], data[central + 8:central + 10] = [struct.pack('<H', flag)] * 2
    return bytes(data)


def json_files(size, good):
    "A configuration that is none."
    most = 8_000_000 if size == 'short' else 30_000_000
    for what, data in {'nothing': b'', 'not JSON': b'{', 'a list': b'[]', 'null': b'null', 'text': b'"a"', 'NaN': b'{"model_type": NaN}', 'Infinity': b'{"a": Infinity}', 'minus infinity': b'{"a": -Infinity}', 'a name twice': b'{"a": 1, "a": 1}', 'not UTF-8': b'{"a": "\xff"}', 'UTF-16': good.decode().encode('utf-16'),
            'a mark of its order': b'\xef\xbb\xbf' + good, 'lists in lists': b'[' * 100_000, 'a list 990 deep': good[:-1] + b', "deep": ' + b'[' * 990 + b']' * 990 + b'}', 'a list 490 deep': good.rstrip()[:-1] + b', "deep": ' + b'[' * 490 + b']' * 490 + b'}', 'an endless number': b'{"d_model": ' + b'9' * 100_000 + b'}',
            'many lists': b'{"a": [' + b'[],' * (most // 3) + b'[]]}', 'many spaces': good + b' ' * most, 'HTML': b'<!doctype html>', 'a pickle': b'\x80\x02}.'}.items():
        yield 'a configuration that is none', what, data


def wrong_types(config):
    "A configuration in which one value is of another kind, or beyond all measure."
    for key in config:
        for value in (None, True, -1, 0, 1.5, 10**9, 2**63, 10**30, 1e308, 'x', '../evil', '\x1b[2J\n', [], {}, [1], {'a': 1}, [[]] * 3, 'a' * 100_000): yield key, value


# ---- checkpoints

class Bench:
    "Sound models of each format, and copies in which one file is another; made without torch."
    def __init__(self, work):
        from whisper_nb.convert import convert
        self.work,self.number = work,0
        self.models = {'transformers': Path(shutil.copytree(DEMO_DIR, work/'demo'))}
        self.models |= {'ctranslate2': convert(self.models['transformers'], 'int8').path}

    @contextmanager
    def copy(self, format, **files):
        "A copy, by hard links, with other files; '__' in a name stands for a dot."
        self.number += 1
        path = self.work/f'copy {self.number}'/'demo'
        link_or_copy_tree(self.models[format], path)
        for name, content in files.items():
            name = name.replace('__', '.')
            (path/name).unlink(missing_ok=True)
            if content is not None: (path/name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        (path/'manifest.json').unlink(missing_ok=True)  # So that nothing is found by its hash
        try: yield path
        finally: shutil.rmtree(path.parent)


def refused(found):
    "A verification that says no, having stumbled over nothing; an exception when it stumbled."
    assert not (stumbled := [check.detail for check in found.checks if 'could not be checked' in check.detail]), stumbled
    return not found.ok


class Refusal(WhisperNbError):
    "Stands for a verification that fails, as it should."


def checked(path):
    "What `verify` finds; `Refusal` when it says no, for good reasons."
    if refused(found := verify(path)): raise Refusal('refused', 'as it should be')
    return found


def try_checkpoint(judge, bench, fault, case, format, right=refused, **files):
    "One spoiled copy: what `verify` says, and what becomes of it when it is brought to a models directory."
    from whisper_nb.hub import download
    with bench.copy(format, **files) as path:
        judge(f'a checkpoint ({format})', fault, f'{case} (verify)', partial(checked, path), lambda found: right is not refused)
        models = path.parent/'models'
        def brought(): return require_verified(download(path, models_dir=models).path).path  # As `prepare` does
        def after(): return '' if not models.exists() or all(not entry.name.startswith('.') or entry.name in ('.locks', '.staging') for entry in models.iterdir()) else 'something is left'
        judge(f'a checkpoint ({format})', fault, f'{case} (download)', brought, lambda found: set(list_files(found)) and not differences(found, read_manifest(found)), after)


def read_from(path, read):
    def work(data): path.write_bytes(data)
    return lambda data: (work(data), read(path))[1]


def spoiled(size):
    "Files that take the place of sound ones: (fault, case, format, what proves a result, files)."
    config, short = read_json(DEMO_DIR/'config.json'), size == 'short'
    for number, (fault, case, data) in enumerate(json_files(size, json.dumps(config).encode())):
        for name in ('config.json', 'generation_config.json', 'preprocessor_config.json', 'tokenizer.json', 'tokenizer_config.json'):
            if not short or number % (3 if name == 'config.json' else 9) == 0: yield fault, f'{case} as {name}', 'transformers', any_answer, {name.replace('.', '__'): data}
    for number, (key, value) in enumerate(wrong_types(config)):
        if number % (47 if short else 3) == 0: yield 'a value that is wrong', f'{key} = {value!r:.30}', 'transformers', any_answer, dict(config__json=config | {key: value})
    for make, format, name, step in ((safetensors_files, 'transformers', 'model__safetensors', 17), (model_bin_files, 'ctranslate2', 'model__bin', 23)):
        for number, (fault, case, data) in enumerate(make('short')):
            if number % (step if short else 2) == 0: yield fault, case, format, refused, {name: data}
    for number, shard in enumerate(('../model.safetensors', '/etc/passwd', 'C:\\model.safetensors', '..\\model.safetensors', 'model.safetensors\0', 'a\0.safetensors', '', '.safetensors', 'model.bin', 1, None, [], 'http://127.0.0.1/a.safetensors', 'a' * 300 + '.safetensors', 'model.safetensors.index.json', '\x1b[2J.safetensors')):
        index = dict(metadata=dict(total_size=10**30), weight_map={'a': shard})
        if not short or number % 3 == 0: yield 'an index that points elsewhere', repr(shard)[:60], 'transformers', refused, dict(model__safetensors=None, model__safetensors__index__json=index)
    for number, (case, changes) in enumerate(tokenizers(read_json(DEMO_DIR/'tokenizer.json'), size).items()):
        if not short or number % 3 == 0: yield 'a tokenizer that is wrong', case, 'transformers', any_answer, dict(tokenizer__json=changes)


def checkpoints(judge, work, size, part=0, parts=1):
    "Files of checkpoints that are not what they should be: read one by one, and in the place of sound ones."
    readers = {'safetensors': (safetensors_files, read_safetensors, 'model.safetensors'), 'model.bin': (model_bin_files, read_model_bin, 'model.bin'), 'model.pt': (model_pt_files, read_model_pt, 'model.pt')}
    def after(): return 'SPRUNG is there' if Path('SPRUNG').exists() else ''
    for name, (make, read, file) in readers.items() if part == 0 else ():
        for fault, case, data in make(size):
            (work/file).write_bytes(data)
            judge(f'a file ({name})', fault, case, partial(read, work/file), lambda found: isinstance(found, Weights) and sum(tensor.bytes for tensor in found.tensors.values()) <= len(data), after)
    bench = Bench(work)
    for number, (fault, case, format, right, files) in enumerate(spoiled(size)):
        if number % parts == part: try_checkpoint(judge, bench, fault, case, format, right, **files)


def any_answer(found): return True  # Whatever it is: what is looked at is that it came, in time, and in words


def tokenizers(good, size):
    "Tokenizers that take for ever, take all memory, or are none."
    pattern = lambda text: dict(type='Split', pattern=dict(Regex=text), behavior='Isolated', invert=False)
    many = 100_000 if size == 'short' else 2_000_000
    return {'a pattern that never ends': good | dict(pre_tokenizer=pattern('(a+)+$')), 'another': good | dict(pre_tokenizer=pattern('(.*)*(.*)*(.*)*x')), 'a pattern of megabytes': good | dict(pre_tokenizer=pattern('a?' * 100_000 + 'a' * 100_000)),
        'a pattern that repeats': good | dict(pre_tokenizer=pattern('((a{1,1000}){1,1000}){1,1000}')), 'a broken pattern': good | dict(pre_tokenizer=pattern('(')), 'a normalizer': good | dict(normalizer=dict(type='Replace', pattern=dict(Regex='(a+)+$'), content='x')),
        'a vocabulary of millions': json.dumps(good | dict(model=good['model'] | dict(vocab={f'token {number}': number for number in range(many)}))).encode(), 'steps in steps': good | dict(pre_tokenizer=nested(dict(type='Sequence', pretokenizers=[]), 'pretokenizers', 200)),
        'a list of tokens': good | dict(added_tokens=[{'id': 10**18, 'content': 'x'}]), 'tokens that are none': good | dict(added_tokens=[1, None]), 'no model': good | dict(model=None), 'another model': good | dict(model=dict(type='Unigram', vocab=[['a', 0.0]])), 'merges that are none': good | dict(model=good['model'] | dict(merges=[[1, 2]]))}


def nested(value, key, depth):
    for _ in range(depth): value = value | {key: [value]}
    return value


# ---- code that comes along

EVIL = "from pathlib import Path\nPath({sprung!r}).write_text('ran')\nclass Evil:\n    def __init__(self, *arguments, **options): pass\n    @classmethod\n    def from_pretrained(cls, *arguments, **options): return cls()\n"


def plant(directory, sprung, asked):
    "Code beside a model, and every way known to have it run; `asked`: in all files, so that the model cannot be loaded without it."
    code = EVIL.format(sprung=str(sprung))
    for name in ('evil.py', 'modeling_evil.py', 'configuration_evil.py', 'tokenization_evil.py', '__init__.py', 'torch.py', 'json.py', 'numpy.py', 'sitecustomize.py', 'usercustomize.py', 'conftest.py', 'setup.py', 'custom_generate/generate.py', 'build/__init__.py'):
        (directory/name).parent.mkdir(exist_ok=True)
        (directory/name).write_text(code)
    (directory/'custom_generate'/'requirements.txt').write_text('evil')
    classes = {f'Auto{kind}': 'evil.Evil' for kind in ('Config', 'Model', 'ModelForSpeechSeq2Seq', 'ModelForCausalLM', 'Processor', 'Tokenizer', 'FeatureExtractor', 'ImageProcessor')}
    def change(name, **values):
        if (directory/name).is_file(): (directory/name).write_text(json.dumps(read_json(directory/name) | values))
    custom = dict(auto_map=classes, trust_remote_code=True, custom_pipelines={'automatic-speech-recognition': dict(impl='evil.Evil', pt=['AutoModel'])})
    change('config.json', **custom, architectures=['Evil'])
    change('generation_config.json', **custom, custom_generate='.')
    if not asked: return
    change('preprocessor_config.json', **custom, feature_extractor_type='Evil', processor_class='Evil')
    change('tokenizer_config.json', **custom | dict(auto_map=dict(AutoTokenizer=['evil.Evil', 'evil.Evil'], AutoProcessor='evil.Evil')), tokenizer_class='Evil', processor_class='Evil')
    (directory/'processor_config.json').write_text(json.dumps(dict(auto_map=classes, processor_class='Evil')))


def command(*words, cwd, seconds=120, **environment):
    "Run whisper-nb as a user does who says yes to everything."
    words = [str(Path(sys.executable).with_name('whisper-nb')), *map(str, words)]
    return subprocess.run(words, cwd=cwd, input='y\n' * 20, capture_output=True, text=True, timeout=seconds, env={**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1', **environment})


def commanded(campaign, subject, fault, sprung, *words, cwd, codes=(0, 1, 2)):
    "Count a command: nothing was run, and an error is two lines."
    try: done = command(*words, cwd=cwd)
    except subprocess.TimeoutExpired: return campaign.count(subject, fault, 'lost', f'{words}: more than two minutes')
    trouble = 'the code was run' if sprung.exists() else '' if done.returncode in codes and 'Traceback' not in done.stderr and 'this is a bug' not in done.stderr else f'{done.returncode}: {done.stderr[-300:]}'
    campaign.count(subject, fault, 'lost' if trouble else 'refused' if done.returncode else 'harmless', trouble and f'{words[0]}: {trouble}')


def foreign_code(judge, work, size):
    "Models that bring code: looked at, prepared, tested and used; the code must not run."
    sprung = work/'sprung'
    from whisper_nb.convert import convert
    planted = [Path(shutil.copytree(DEMO_DIR, work/name)) for name in ('quiet', 'asking')]
    formats = [('transformers', path) for path in planted[size == 'short':]]
    if size == 'full': formats += [('ctranslate2', convert(planted[0], 'int8').path), ('openai', convert(planted[0], 'float32', format='openai').path)]
    for _, path in formats:
        plant(path, sprung, asked=path == planted[1])
        (path/'manifest.json').unlink(missing_ok=True)
    campaign, clip = judge.campaign, next((DEMO_DIR.parent/'clips').glob('*.flac'))
    for format, path in formats:
        commands = dict(verify=['verify', '.'], test=['test', '.'], transcribe=['transcribe', clip, '--model', '.'], prepare=['prepare', path, '--models-dir', work/'out', '--outputs-dir', work/'out'])
        if size == 'short': commands = dict(test=commands['test'])
        if format == 'openai': commands.pop('prepare', None)
        for words in commands.values(): commanded(campaign, f'a checkpoint ({format})', 'code beside the model', sprung, *words, cwd=path)
    pickles(judge, work, size, sprung)


class Trap:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return os.mkdir, (self.path,)


def pickled_weights(sprung, size):
    "Pickles for weights: (case, file's name, bytes, whether a flag that allows pickles lets it in)."
    legacy = lambda protocol: pickle.dumps({'a': Trap(sprung)}, protocol)
    for protocol in (0, 2, 4, 5): yield f'protocol {protocol}', 'pytorch_model.bin', legacy(protocol)
    yield 'in a zip', 'pytorch_model.bin', model_pt(legacy(2), {'version': b'3\n', 'byteorder': b'little'}, 'archive')
    yield 'in a tar', 'pytorch_model.bin', tarred({'pickle': legacy(2), 'tensors': legacy(2), 'storages': legacy(2), 'sys_info': legacy(2)})
    yield 'as safetensors', 'model.safetensors', legacy(2)
    yield 'as numpy', 'weights.npz', zip_of({'a.npy': b'\x93NUMPY\x01\x00v\x00' + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b'\n' + legacy(2)})
    yield 'as model.bin', 'model.bin', legacy(2)
    yield 'as model.pt', 'model.pt', model_pt(legacy(2))
    yield 'as a configuration', 'config.json', legacy(2)
    yield 'as a script of torch', 'pytorch_model.bin', model_pt(legacy(2), {'constants.pkl': legacy(2), 'code/__torch__.py': b'evil', 'version': b'3\n'}, 'archive')
    yield 'nothing', 'pytorch_model.bin', b''
    yield 'text', 'pytorch_model.bin', b'version https://git-lfs.github.com/spec/v1\n'


def tarred(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def odd_tensors():
    "Tensors that torch would load and that are none of a model: as a file of torch each."
    import torch
    plain = torch.zeros(4)
    def saved(**content):
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()
    for what, value in {'a view of one number as a terabyte': torch.zeros(1).expand(1_000_000, 250_000), 'sparse': torch.eye(4).to_sparse(), 'on no device': torch.zeros(4, device='meta'), 'complex': torch.zeros(4, dtype=torch.complex64), 'quantized': torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            'compressed rows': torch.eye(4).to_sparse_csr(), 'a list': [plain], 'a number': 1, 'text': 'x', 'a dictionary': dict(a=plain), 'nothing': None, 'a set': {1}, 'overlapping': torch.zeros(7).as_strided((4, 4), (1, 1)), 'nested': torch.nested.nested_tensor([plain, plain])}.items():
        try: yield what, saved(a=value, b=plain)
        except Exception: continue  # Not every build of torch can write every kind
    yield 'a key that is a number', (lambda file: (torch.save({1: plain}, file), file.getvalue())[1])(io.BytesIO())
    yield 'no tensors', saved()
    yield 'many views of one storage', saved(**{f'a{number}': plain[number % 3:] for number in range(2_000)})


def pickles(judge, work, size, sprung):
    "Pickled weights: not read unless that is allowed, and then only as tensors."
    from whisper_nb.hub import download
    warnings.simplefilter('ignore')  # Of torch, about pickles of other protocols
    base = work/'pickled'
    shutil.copytree(DEMO_DIR, base)
    (base/'model.safetensors').unlink()
    def after(): return 'the code was run' if sprung.exists() else ''
    def tried(fault, case, name, data, right):
        directory = base.parent/'case'/'demo'
        shutil.copytree(base, directory)
        (directory/name).write_bytes(data)
        for allowed in (False, True):
            def brought(): return require_verified(download(directory, models_dir=work/'models', allow_pickle=allowed).path).path
            judge('a checkpoint (pickle)', fault, f'{case} ({"allowed" if allowed else "not allowed"})', brought, right, after, seconds=60, bytes=900_000_000)  # torch itself is loaded on the way
        judge('a checkpoint (pickle)', fault, f'{case} (verify)', partial(checked, directory), lambda found: False, after)
        shutil.rmtree(directory.parent)
        shutil.rmtree(work/'models', ignore_errors=True)
    for number, (case, name, data) in enumerate(pickled_weights(sprung, size)):
        if size == 'full' or number % 3 == 1: tried('a pickle with a trap', case, name, data, lambda found: False)
    for number, (case, data) in enumerate(odd_tensors()):
        if size == 'full' or number % 5 == 0: tried('tensors that are none', case, 'pytorch_model.bin', data, lambda found: sum(path.stat().st_size for path in found.iterdir()) < 20_000_000)


# ---- recordings

def wave(samples=b'\0\0' * 1_600, rate=16_000, channels=1, bits=16, data=None, riff=None, kind=1):
    "A WAV file, with numbers as they are wanted."
    fmt = struct.pack('<HHIIHH', kind, channels, rate % 2**32, rate * channels * bits // 8 % 2**32, channels * bits // 8 % 2**16, bits)
    return b'RIFF' + struct.pack('<I', 36 + len(samples) if riff is None else riff) + b'WAVEfmt ' + struct.pack('<I', len(fmt)) + fmt + b'data' + struct.pack('<I', len(samples) if data is None else data) + samples


def tone(): return b''.join(struct.pack('<h', 20_000 if place // 20 % 2 else -20_000) for place in range(16_000))


def playlists(folder, port):
    "Files that name other files, or the network: (what, name, text)."
    local = {'beside it': 'secret.wav', 'by its path': f'{folder}/secret.wav', 'as a URL': f'file:{folder}/secret.wav', 'as another URL': f'file://{folder}/secret.wav', 'at the network': f'http://127.0.0.1:{port}/secret.wav', 'joined': f'concat:{folder}/secret.wav|{folder}/secret.wav', 'part of it': f'subfile,,start,0,end,9999,,:{folder}/secret.wav', 'as a stream': f'tcp://127.0.0.1:{port}', 'encrypted': f'crypto:{folder}/secret.wav', 'in a cache': f'cache:{folder}/secret.wav', 'as data': 'data:audio/wav;base64,' + base64.b64encode(wave(tone())).decode()}
    for what, target in local.items():
        for name in ('list.m3u8', 'list.wav', 'list.mp3'): yield what, name, f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n'
        yield what, 'master.m3u8', f'#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n'
        yield what, 'map.m3u8', f'#EXTM3U\n#EXT-X-MAP:URI="{target}"\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n'
        yield what, 'key.m3u8', f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n'
        yield what, 'list.ffconcat', f"ffconcat version 1.0\nfile '{target}'\n"
        yield what, 'list.ogg', f"ffconcat version 1.0\nfile {target}\nduration 5\n"
        yield what, 'list.pls', f'[playlist]\nFile1={target}\nNumberOfEntries=1\n'
        yield what, 'list.mpd', f'<?xml version="1.0"?><MPD type="static" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="audio/wav"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
        yield what, 'list.ism', f'<SmoothStreamingMedia><StreamIndex Url="{target}"/></SmoothStreamingMedia>'
    yield 'as a session', 'list.sdp', f'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n'
    yield 'as a filter', 'list.lavfi', f'amovie={folder}/secret.wav'
    yield 'as a script', 'list.avs', f'DirectShowSource("{folder}/secret.wav")'
    yield 'as external data', 'list.mov', qt_reference(f'{folder}/secret.wav')


def qt_reference(target):
    "Something like a QuickTime film whose sound is in another file."
    def atom(kind, *parts):
        body = b''.join(parts)
        return struct.pack('>I', len(body) + 8) + kind + body
    alias = atom(b'alis', bytes(4), target.encode())
    return (atom(b'ftyp', b'qt  ', bytes(4), b'qt  ') + atom(b'moov', atom(b'trak', atom(b'mdia', atom(b'minf', atom(b'dinf', atom(b'dref', bytes(4), struct.pack('>I', 1), alias)))))))


def recordings(judge, work, size):
    "Sound that is none: playlists that lead elsewhere, headers that claim too much, silence that fills the memory."
    import numpy as np
    folder = work/'sounds'
    folder.mkdir()
    (folder/'secret.wav').write_bytes(wave(tone()))
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.001)
        def after():
            try: server.accept()[0].close()
            except TimeoutError: return ''
            return 'the network was asked'
        def unheard(found): return not np.abs(found).max() > 0.3  # The secret is loud
        for number, (what, name, text) in enumerate(playlists(folder, server.getsockname()[1])):
            (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
            judge('a recording', 'a playlist', f'{name}, {what}', partial(load_audio, folder/name), unheard, after)
            (folder/name).unlink()
    def short(found): return len(found) < 10_000_000 and np.isfinite(found).all()
    odd = {'2^32 samples claimed': wave(data=2**32 - 1, riff=2**32 - 1), 'no rate': wave(rate=0), 'a rate of 2^32': wave(rate=2**32 - 1), 'no channels': wave(channels=0), '65535 channels': wave(channels=65_535), 'no bits': wave(bits=0), '65535 bits': wave(bits=65_535), 'an unknown kind': wave(kind=0x1234), 'a rate of 1': wave(rate=1), 'a rate of 572669568': wave(rate=572_669_568),
        'RF64': b'RF64\xff\xff\xff\xffWAVEds64' + struct.pack('<IQQQI', 28, 2**63, 2**63, 2**63, 0) + wave(data=2**32 - 1)[12:], 'garbage of MP3': b'\xff\xfb\x90\x00' * 5_000, 'a tag of 256 MB': b'ID3\x04\x00\x00\x7f\x7f\x7f\x7f' + bytes(1_000), 'FLAC of nothing': b'fLaC\x80\x00\x00\x22' + bytes(34), 'FLAC with a picture of 16 MB': b'fLaC\x86\xff\xff\xff' + bytes(1_000),
        'Ogg of nothing': b'OggS' + bytes(200), 'a film of nothing': b'\0\0\0\x18ftypmp42' + bytes(12) + b'\0\0\0\1mdat' + struct.pack('>Q', 2**63), 'Matroska of nothing': b'\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff', 'AIFF': b'FORM\xff\xff\xff\xffAIFFCOMM\0\0\0\x12' + bytes(18), 'AU': b'.snd\0\0\0\x18\xff\xff\xff\xff\0\0\0\3\0\0\0\0\xff\xff\xff\xff',
        'AMR': b'#!AMR\n' + b'\xff' * 1_000, 'a picture': b'\x89PNG\r\n\x1a\n' + bytes(100), 'a zip': zip_of({'a': b''}), 'a shell script': b'#!/bin/sh\necho', 'nothing': b''}
    for what, data in odd.items():
        for name in ('a.wav', 'a.mp3') if size == 'full' else ('a.wav',):
            (folder/name).write_bytes(data)
            judge('a recording', 'a header that lies', f'{what} ({name})', partial(load_audio, folder/name), short)
    minutes = 10 if size == 'short' else 120
    (folder/'silence.flac').write_bytes(silence(minutes))
    allowed = minutes * 60 * 16_000  # Bytes; it needs several times as much
    judge('a recording', 'a bomb', f'{minutes} minutes in {len((folder/"silence.flac").read_bytes()) / 1e3:.0f} kB', partial(load_audio, folder/'silence.flac', memory=allowed), lambda found: False)


def silence(minutes):
    "Minutes of silence, packed as small as it goes."
    import av
    import numpy as np
    file = io.BytesIO()
    with av.open(file, 'w', format='flac') as container:
        stream = container.add_stream('flac', rate=16_000, layout='mono')
        for _ in range(minutes):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960_000), np.int16), format='s16', layout='mono')
            frame.rate = 16_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


# ---- right examples gone wrong

NASTY = (None, True, False, -1, 0, 1, 1.5, -0.0, float('nan'), float('inf'), 2**31, 2**63, 2**64, -2**63, 10**30, 10**400, 1e308, '', ' ', 'x', 'x' * 3_000, '\0', '\n', '\x1b[2J', '\ud800', '\u202e', '../evil', '/etc/passwd', 'C:\\evil', '²', '٣', 'NaN', '1e999', '0x10',
    'null', [], {}, [None], [[]], [1, 2, 3], {'a': 1}, {'': ''}, {'a': {'b': []}}, [{}] * 3, ['a'] * 100, '<html>', 'true', '-1', '1_0', '\ufeff', 'é', 'a' * 64, '0' * 64)


def nasty(chance): return deepcopy(chance.choice(NASTY))


def places_in(value, path=()):
    "All places in a JSON value, down to some depth."
    yield path
    if len(path) > 6: return
    if isinstance(value, dict): yield from (place for key, each in value.items() for place in places_in(each, (*path, key)))
    if isinstance(value, list): yield from (place for number, each in enumerate(value[:50]) for place in places_in(each, (*path, number)))


def changed_json(chance, value):
    "A JSON value, changed in one place or a few, as text."
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(places_in(value))
        place = chance.choice(places)
        if not place:
            if chance.random() < 0.15: value = chance.choice((nasty(chance), [value], {'a': value}))
            continue
        if not isinstance(value, (dict, list)): break
        inside = value
        for step in place[:-1]: inside = inside[step]
        match chance.randrange(9):
            case 0: del inside[place[-1]]
            case 1: inside[place[-1]] = [inside[place[-1]]]
            case 2: inside[place[-1]] = {'a': inside[place[-1]]}
            case 3 if isinstance(inside, dict): inside[chance.choice(('', 'x', '../evil', '\x1b[2J', '\ud800', 'a' * 300, 'CON'))] = inside.pop(place[-1])
            case 4 if isinstance(inside, dict): inside['more'] = nasty(chance)
            case 5 if isinstance(inside, list): inside.extend(inside[:] * chance.choice((1, 3)))
            case 6: inside[place[-1]] = nested_lists(chance.choice((5, 100, 300, 480, 900)))
            case _: inside[place[-1]] = nasty(chance)
    try: text = json.dumps(value, ensure_ascii=chance.random() < 0.8)
    except RecursionError: text = json.dumps(NASTY[0])
    if chance.random() < 0.1 and '"' in text: # the text of a name once more
        at = text.index('"')
        text = text[:at] + '"version": 1, ' + text[at:]
    return text.encode('utf-8', 'surrogatepass')


def nested_lists(depth):
    found = []
    for _ in range(depth): found = [found]
    return found


def changed_bytes(chance, data):
    "Bytes, changed in one place or a few."
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1) if chance.random() < 0.6 or len(data) < 64 else chance.randrange(64)
        length = chance.choice((1, 1, 2, 4, 8, 20))
        match chance.randrange(8):
            case 0 if at < len(data): data[at] ^= 1 << chance.randrange(8)
            case 1: data[at:at + length] = chance.randbytes(length)
            case 2: del data[at:at + length]
            case 3: data[at:at] = chance.randbytes(length)
            case 4: data[at:at + length] = chance.choice((b'\0', b'\xff', b'\x7f', b'\x80', b'9', b'"', b'[', b'{', b'\n', b' ')) * length
            case 5: del data[at:]
            case 6: data[at:at] = data[chance.randrange(len(data) + 1):][:chance.choice((1, 10, 500))]
            case 7: data[at:at + 8] = struct.pack('<Q', chance.choice((2**63, 2**64 - 1, 2**32, 2**31, 0, 1)))[:chance.choice((1, 2, 4, 8))]
    return bytes(data)


def changed_text(chance, text):
    "A text, changed in one place or a few."
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, length = chance.randrange(len(text) + 1), chance.choice((0, 1, 1, 3, 10))
        extra = chance.choice(('', ' ', '\n', '\0', '\t', '"', "'", ',', ';', ':', '/', '//', '\\', '..', '@', '?', '#', '%', '%00', '%2e', '[', ']', '²', '٣', '\ud800', '\u202e', '\x1b[2J', '9' * 30, '9' * 5_000, '-', 'e', 'é', 'nan', 'x' * 300, text[:10]))
        text = text[:at] + extra + text[at + length:]
    return text


def example(seed, parser):
    "The input that belongs to a seed: mostly a right example gone wrong, sometimes anything."
    chance = random.Random(seed)
    right = chance.choice(parser.examples)
    if chance.random() < 0.04: return chance.randbytes(chance.choice((0, 1, 10, 300)))
    if parser.change: return parser.change(chance, right)
    if isinstance(right, (dict, list)):
        data = changed_json(chance, right)
        if chance.random() < 0.12: data = changed_bytes(chance, data)
        return {0: lambda: b'\xef\xbb\xbf' + data, 1: lambda: data.decode('utf-8', 'replace').encode('utf-16'), 2: lambda: b'[' * 50_000, 3: lambda: data * 2}.get(chance.randrange(60), lambda: data)()
    return changed_bytes(chance, right) if isinstance(right, bytes) else changed_text(chance, right).encode('utf-8', 'surrogatepass')


class Parser(SimpleNamespace):
    "Something that reads what others wrote: examples, how it is called with bytes, and what proves a result."
    def __init__(self, name, examples, read, right, change=None, share=1.0): super().__init__(name=name, examples=examples, read=read, right=right, change=change, share=share)


def text_of(data): return data.decode('utf-8', 'surrogatepass') if is_utf8(data) else data.decode('latin-1')
def is_utf8(data):
    try: return data.decode('utf-8', 'surrogatepass') is not None
    except UnicodeDecodeError: return False


def summed(data, start):
    "A tar with a right checksum in the header at `start`."
    data = bytearray(data)
    data[start + 148:start + 156] = b'%06o\0 ' % (256 + sum(data[start:start + 148]) + sum(data[start + 156:start + 512]))
    return bytes(data)


def changed_tar(chance, data):
    start = chance.choice((0, len(first())))
    part = changed_bytes(chance, data[start:start + 512])[:512].ljust(512, b'\0')
    return summed(data[:start] + part + data[start + 512:], start)


def manifest_parsers(work):
    def sound(found): return isinstance(found, Manifest) and parse_manifest(found.to_json()) == found and len(found.sha256) == 64 and repr(found) and found.size >= 0 and isinstance(found.checkpoint, str)
    yield Parser('parse_manifest', [json.loads(manifest(FILES, made_from=dict(name='a', manifest_sha256='0' * 64), made_by=dict(tool='1')))], parse_manifest, sound)
    record = json.loads(Publication(NAME, f"{'a' * 12}/{NAME}.tar.gz", 10, 'a' * 64, 'b' * 64, '2026-01-01T00:00:00Z').to_json())
    yield Parser('parse_publication', [record], parse_publication, lambda found: isinstance(found, Publication) and parse_publication(found.to_json().encode()) == found and found.bytes > 0)
    yield Parser('parse_sidecar', [f"{'a' * 64}  {NAME}.tar.gz\n", f"{'A' * 64} *{NAME}.tar.gz\r\n"], lambda data: parse_sidecar(data, f'{NAME}.tar.gz', 'sha256'), lambda found: len(bytes.fromhex(found)) == 32 and found == found.lower())
    good = tar(*whole())
    yield Parser('read_label', [good], lambda data: read_label(TarReader(iter([data]))), lambda found: is_safe_name(found.name) and isinstance(found.manifest, Manifest), changed_tar)
    for format in FORMATS: yield Parser(f'unpacked ({format})', [pack_pieces(format, good), pack_stream(format, good)], lambda data, format=format: b''.join(unpacked(io.BytesIO(data), FORMATS[format])), lambda found: len(found) < 50_000_000)
    def open_archive(data):
        place = Path(work)/f'{NAME}.tar'
        place.write_bytes(data)
        return check_archive(place)
    yield Parser('check_archive', [good], open_archive, lambda found: found.name == NAME and set(found.manifest.files) == set(FILES), changed_tar)


def file_parsers(work):
    "Parsers of the files of a model."
    from whisper_nb.layout import Dimensions, SpecialTokens, config_dimensions, read_features, read_tokens, read_vocabulary, special_tokens
    from whisper_nb.verify import Verification
    from whisper_nb.vocabulary import build_tokenizer
    def inside(name, read):
        folder = Path(work)/name.replace('.', '-')
        folder.mkdir(exist_ok=True)
        def call(data):
            (folder/name).write_bytes(data)
            return read(folder)
        return folder, call
    header = {'a': tensor(), 'b': tensor('F16', (2, 2), (4, 12)), '__metadata__': dict(format='pt')}
    def change_header(chance, right): return safetensors(changed_json(chance, header), bytes(12)) if chance.random() < 0.8 else changed_bytes(chance, right)
    def sound(found): return isinstance(found, Weights) and found.parameters >= 0 and repr(found) and all(tensor.bytes >= 0 for tensor in found.tensors.values())
    yield Parser('read_safetensors', [safetensors(header, bytes(12))], inside('model.safetensors', lambda folder: read_safetensors(folder/'model.safetensors'))[1], sound, change_header)
    yield Parser('read_index', [dict(metadata=dict(total_size=1), weight_map=dict(a='model-00001-of-00002.safetensors', b='model-00002-of-00002.safetensors'))], inside('model.safetensors.index.json', lambda folder: read_index(folder/'model.safetensors.index.json'))[1],
        lambda found: all(isinstance(shard, str) and '/' not in shard for shard in found.values()))
    bins = model_bin(variable(b'a/b', (2,), data=bytes(8)), variable(b'c', (), 1, data=b'\1'), aliases=struct.pack('<I', 1) + text_field(b'd') + text_field(b'a/b'))
    yield Parser('read_model_bin', [bins], inside('model.bin', lambda folder: read_model_bin(folder/'model.bin'))[1], sound)
    state = b'\x80\x02}q\x00(X\x04\x00\x00\x00dimsq\x01}X\x10\x00\x00\x00model_state_dict}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00K\x02\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRsu.'
    def change_pt(chance, right): return model_pt(changed_bytes(chance, state), {'data/0': bytes(8)}) if chance.random() < 0.6 else changed_bytes(chance, right)
    yield Parser('read_model_pt', [model_pt(state, {'data/0': bytes(8)})], inside('model.pt', lambda folder: read_model_pt(folder/'model.pt'))[1], sound, change_pt)
    good = read_json(DEMO_DIR/'tokenizer.json')
    small = good | dict(model=good['model'] | dict(vocab=dict(list(good['model']['vocab'].items())[:40]), merges=good['model']['merges'][:10]), added_tokens=[each | dict(id=40 + number) for number, each in enumerate(good['added_tokens'][:20])])
    def tokens_and_places(folder):
        found = read_tokens(folder)
        try: special_tokens(found)
        except WhisperNbError: pass
        return found
    def tokens(found): return isinstance(found, tuple) and all(isinstance(token, str) for token in found)
    yield Parser('read_tokens (tokenizer.json)', [small], inside('tokenizer.json', tokens_and_places)[1], tokens)
    folder, call = inside('tokenizer_config.json', read_tokens)
    (folder/'vocab.json').write_text(json.dumps({'a': 0, 'b': 1}))
    yield Parser('read_tokens (tokenizer_config.json)', [dict(added_tokens_decoder={'2': dict(content='<|endoftext|>'), '3': dict(content='x')})], call, tokens)
    folder, call = inside('vocab.json', read_tokens)
    (folder/'added_tokens.json').write_text(json.dumps({'c': 2}))
    yield Parser('read_tokens (vocab.json)', [{'a': 0, 'b': 1}], call, tokens)
    folder, call = inside('added_tokens.json', read_tokens)
    (folder/'vocab.json').write_text(json.dumps({'a': 0, 'b': 1}))
    yield Parser('read_tokens (added_tokens.json)', [{'c': 2, 'd': 3}], call, tokens)
    folder, call = inside('merges.txt', build_tokenizer)
    for name in ('vocab.json', 'added_tokens.json'): shutil.copyfile(DEMO_DIR/name, folder/name)
    yield Parser('build_tokenizer', [(DEMO_DIR/'merges.txt').read_bytes()[:300]], call, lambda found: isinstance(json.loads(found), dict), share=0.2)
    yield Parser('read_vocabulary (JSON)', [['a', 'b', '<|endoftext|>']], inside('vocabulary.json', read_vocabulary)[1], tokens)
    yield Parser('read_vocabulary (text)', [b'a\nb\n<|endoftext|>\n'], inside('vocabulary.txt', read_vocabulary)[1], tokens)
    yield Parser('read_features', [read_json(DEMO_DIR/'preprocessor_config.json')], inside('preprocessor_config.json', read_features)[1], lambda found: isinstance(found, dict))
    yield Parser('read_features (processor)', [dict(feature_extractor=read_json(DEMO_DIR/'preprocessor_config.json'))], inside('processor_config.json', read_features)[1], lambda found: isinstance(found, dict))
    yield Parser('config_dimensions', [read_json(DEMO_DIR/'config.json')], inside('config.json', lambda folder: config_dimensions(read_json(folder/'config.json')))[1], lambda found: isinstance(found, Dimensions) and all(0 < value <= 10**7 for value in vars(found).values()))
    from whisper_nb.signing import read_signature, signed_files
    payload = dict(predicate=dict(serialization=dict(method='files', hash_type='sha256'), resources=[dict(name='a.json', digest='a' * 64)]))
    bundle = dict(dsseEnvelope=dict(payload=base64.b64encode(json.dumps(payload).encode()).decode()), verificationMaterial=dict(publicKey=dict(hint='a')))
    def change_bundle(chance, right):
        if chance.random() < 0.4: return changed_json(chance, bundle)
        return json.dumps(bundle | dict(dsseEnvelope=dict(payload=base64.b64encode(changed_json(chance, payload)).decode()))).encode()
    yield Parser('signed_files', [bundle], signed_files, lambda found: all(isinstance(text, str) for pair in found.items() for text in pair), change_bundle)
    from whisper_nb.mirror import card_license
    def license_of(data):
        (Path(work)/'README.md').write_bytes(data)
        return card_license(Path(work))
    cards = [b'---\nlicense: mit\nlanguage:\n- en\n---\nA model.\n', b'---\na: &a [x, x]\nb: &b [*a, *a]\nc: {<<: {license: mit}}\nlicense: "apache-2.0" # ours\n---\n', b'---\nlicense: ' + b'[' * 3_000 + b'\n---\n']
    yield Parser('card_license', cards, license_of, lambda found: found is None or isinstance(found, str) and len(found) < 200 and found.isprintable())


def text_parsers(work):
    "Parsers of what is typed, of rows and of lists."
    from whisper_nb.addresses import Address, parse_address
    from whisper_nb.cases import parse_names, parse_numbers
    from whisper_nb.dataset import Recording, read_dataset
    from whisper_nb.models import parse_quantizations
    from whisper_nb.origin import choose_files
    from whisper_nb.parameters import parse_value
    from whisper_nb.results import read_results
    from whisper_nb.settings import Setting, find_setting, read_settings
    from whisper_nb.runs import notebook_parameters
    from whisper_nb.transfer import retry_after
    urls = ['s3://bucket/models/a', 'gs://bucket/a.tar.gz', 'hf://owner/repository@main/models', 'gdrive://FOLDER_ID/models', 'https://example.com:8000/models/a.tar.gz?signature=secret#part', 'file:///srv/models', 'models/a', 'http://[::1]:80/a']
    yield Parser('parse_address', urls, lambda data: parse_address(text_of(data)), lambda found: isinstance(found, Address) and str(found) and str(found.parent) and str(found/'a') and not ('secret' in found.query and 'secret' in repr(found)))
    yield Parser('parse_numbers', ['1,5', '1, 2,3'], lambda data: parse_numbers(text_of(data), 'beam sizes'), lambda found: all(type(each) is int and each > 0 for each in found))
    yield Parser('parse_names', ['a,b', 'all'], lambda data: parse_names(text_of(data), ('a', 'b'), 'name'), lambda found: set(found) <= {'a', 'b'} and found)
    yield Parser('parse_quantizations', ['float16,int8', 'int8'], lambda data: parse_quantizations(text_of(data)), lambda found: isinstance(found, tuple) and found)
    for kind, texts in {bool: ['true', 'no'], int: ['12', '-5'], float: ['1.5', '1e3'], str: ['x']}.items(): yield Parser(f'parse_value ({kind.__name__})', texts, lambda data, kind=kind: parse_value('a', text_of(data), kind), lambda found, kind=kind: type(found) is kind, share=0.3)
    def waiting(data):
        name, _, value = text_of(data).partition(': ')
        return retry_after(SimpleNamespace(headers={name.strip(): value}))
    yield Parser('retry_after', ['Retry-After: 5', 'Retry-After: Wed, 21 Oct 2026 07:28:00 GMT', 'ratelimit: "api";r=0;t=55', 'Retry-After: Mon, 01 Jan 0001 00:00:00 +9999'], waiting, lambda found: found is None or type(found) in (int, float) and found >= 0)
    names = ['config.json', 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors', 'model.safetensors.index.json', 'tokenizer.json', 'README.md']
    def chosen(data):
        listed = json.loads(data) if is_utf8(data) and data[:1] == b'[' and data[1:2] == b'"' else names
        return choose_files([each for each in listed if isinstance(each, str)], 'it', True)
    def change_names(chance, right): return json.dumps([changed_text(chance, each) if chance.random() < 0.2 else each for each in right]).encode()
    yield Parser('choose_files', [names, [each.replace('0', '٠') for each in names]], chosen, lambda found: all(map(is_safe_name, found)), change_names)
    rows = [dict(step='machine', models=[dict(model='a', random=False)], processor='x'), dict(step='trial', case='a', round=1, model='a', status='done'), dict(step='heard', case='a', round=1, recording='r', seconds=1.0, text='x')]
    def results(data):
        (Path(work)/'rows.jsonl').write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return read_results(Path(work)/'rows.jsonl')
    def change_rows(chance, right): return b'\n'.join(changed_json(chance, row) if chance.random() < 0.5 else json.dumps(row).encode() for row in rows) + b'\n' * chance.randrange(2)
    yield Parser('read_results', [b'\n'.join(json.dumps(row).encode() for row in rows)], results, lambda found: all(isinstance(row, dict) and isinstance(row['step'], str) for row in found), change_rows)
    setting = dict(model='demo', manifest_sha256='a' * 64, backend='faster-whisper', device='cpu', compute_type='int8', beam_size=5, batch_size=1, threads=2, rtfx=10.5, wer=0.05, peak_memory=10**9, reason='fast', machine=dict(processor='x', cores='2', gpu=''), measured='2026-01-01', rows='rows.jsonl')
    def found_setting(data):
        (Path(work)/'recommended.json').write_bytes(data)
        found = read_settings(Path(work)/'recommended.json')
        repr(find_setting('nowhere', Path(work)/'recommended.json'))
        return found
    yield Parser('read_settings', [dict(version=1, settings=[setting, setting])], found_setting, lambda found: all(isinstance(each, Setting) and repr(each) for each in found))
    from whisper_nb import fidelity
    rests = dict(converted='a', source='b', device='cpu', tools={}, limits={})
    finding = dict(what='logits', stage='float32', limit=0.1, share=0.5, detail='', value=0.01)
    kept = dict(model='a', source='b', quantization='int8', device='cpu', compute_types={}, seconds=1.0, findings=[finding], notes=['x'], heard=True, rests_on=rests)
    def kept_result(data):
        (Path(work)/'a.fidelity.json').write_bytes(data)
        return fidelity._kept(Path(work)/'a.fidelity.json', rests)
    yield Parser('fidelity.json', [kept], kept_result, lambda found: found is None or isinstance(found, fidelity.Fidelity) and repr(found) and found.verdict and found.to_json())
    clip = next((DEMO_DIR.parent/'clips').glob('*.flac'))
    shutil.copyfile(clip, Path(work)/'a.flac')
    listed = {'csv': b'audio,text,language,offset,duration\na.flac,"hello, you",en,0,0.5\na.flac,again,de,,\n', 'tsv': b'path\tsentence\tlocale\na.flac\thello\ten-US\n', 'jsonl': b'{"audio_filepath": "a.flac", "text": "hello", "offset": 0.1, "duration": 0.2}\n{"audio_filepath": {"path": "a.flac"}, "text": null}\n', 'json': b'[{"audio": "a.flac", "text": "hello"}]', 'trans.txt': b'a HELLO YOU\n'}
    for ending, data in listed.items():
        folder = Path(work)/ending.replace('.', '-')
        folder.mkdir()
        shutil.copyfile(clip, folder/'a.flac')
        def dataset(data, path=folder/f'list.{ending}'):
            path.write_bytes(data)
            return read_dataset(path if path.suffix != '.txt' else path.parent)
        changes = (lambda chance, right, rows=[json.loads(line) for line in data.splitlines() if line[:1] == b'{']: b'\n'.join(changed_json(chance, row) for row in rows)) if ending == 'jsonl' else None
        yield Parser(f'read_dataset ({ending})', [json.loads(data) if ending == 'json' else data], dataset, lambda found: all(isinstance(each, Recording) and each.seconds > 0 and repr(each) for each in found), changes, share=0.3)
    notebook = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name='python3', display_name='x', language='python')), cells=[dict(cell_type='code', id='a', metadata=dict(tags=['parameters']), source='model: str = "demo"  # which\ncount: int = 1', outputs=[], execution_count=None)])
    def parameters(data):
        (Path(work)/'a.ipynb').write_bytes(data)
        return notebook_parameters(Path(work)/'a.ipynb')
    yield Parser('notebook_parameters', [notebook], parameters, lambda found: found and all(isinstance(name, str) for name in found), share=0.1)
    sounds = [clip.read_bytes()[:20_000], wave(tone()[:2_000])]
    def sound(data):
        (Path(work)/'a.wav').write_bytes(data)
        return load_audio(Path(work)/'a.wav')
    yield Parser('load_audio', sounds, sound, lambda found: found.ndim == 1 and len(found) < 20_000_000, share=0.2)


@contextmanager
def answering(answers):
    "A server over loopback that answers what stands in `answers`: path → bytes."
    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def do_GET(self):
            data = answers.get(self.path.partition('?')[0], b'')
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        def do_HEAD(self): self.send_error(404)
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_address[1]}'
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def server_parsers(work):
    "Parsers of what a Hub answers, and of what a mirror is asked, over loopback."
    import httpx2
    from whisper_nb.google_drive import _reason
    from whisper_nb.mirror import HubFile
    from whisper_nb.models import Source
    from whisper_nb.origin import ask_hub, choose_files
    listing = dict(id='owner/tiny', sha='a' * 40, cardData=dict(license='mit'), tags=['license:mit'], siblings=[dict(rfilename='config.json', size=10, blobId='b' * 40), dict(rfilename='tokenizer.json', size=20, blobId='c' * 40),
        dict(rfilename='model.safetensors', size=30, blobId='d' * 40, lfs=dict(sha256='e' * 64, size=30, pointerSize=130))])
    answers = {}
    with answering(answers) as endpoint, httpx2.Client(trust_env=False) as client:
        source = Source('hub', 'owner/tiny')
        def asked(data):
            answers['/api/models/owner/tiny/revision/main'] = data
            found = ask_hub(source, None, endpoint, client, {})
            return found, [found.describe(name) for name in choose_files(found.names, found.title) if found.files[name].etag and found.files[name].size is not None]
        def sound(found):
            origin, files = found
            return len(origin.commit) == 40 and all(isinstance(text, str) for text in origin.source.values()) and all(isinstance(each, HubFile) and type(each.size) is int and 0 <= each.size < 2**63 and is_safe_name(each.path) and len(each.etag) in (40, 64) for each in files)
        yield [Parser('ask_hub', [listing], asked, sound, share=0.5),
            Parser('an answer of Google Drive', [dict(error=dict(errors=[dict(reason='notFound')]))], _reason, lambda found: isinstance(found, str) and found.isprintable(), share=0.5)]


def fuzz(judge, parser, count):
    "Feed a parser with examples gone wrong."
    from hypothesis import HealthCheck, Phase, given, settings, strategies
    right = parser.examples[0]
    right = right if isinstance(right, bytes) else right.encode() if isinstance(right, str) else json.dumps(right).encode()
    assert parser.right(parser.read(right)), f'{parser.name} does not take a right example'
    @settings(max_examples=max(10, round(count * parser.share)), derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategies.integers(0, 2**64 - 1))
    def property(seed):
        data = example(seed, parser)
        judge('a parser', parser.name, f'seed {seed}', partial(parser.read, data), lambda found: bool(parser.right(found)))
    property()


def parsers(judge, work, size, part=0, parts=1):
    "Every parser of outside data."
    count = 20 if size == 'short' else 2_000
    os.environ['HF_HUB_DISABLE_TELEMETRY'] = '1'
    number = 0
    for name, group in dict(manifests=manifest_parsers, files=file_parsers, texts=text_parsers).items():
        (work/name).mkdir()
        for parser in group(work/name):
            number += 1
            if number % parts == part: fuzz(judge, parser, count)
    if part: return
    with server_parsers(work) as group:
        for parser in group: fuzz(judge, parser, count)


# ---- all of it

TASKS = {'short': [('archives', {}), ('bombs', {}), ('checkpoints', {}), ('recordings', {}), ('parsers', {}), ('foreign_code', {})],
    'full': [('archives', dict(part=0, parts=2)), ('archives', dict(part=1, parts=2)), ('checkpoints', dict(part=0, parts=2)), ('checkpoints', dict(part=1, parts=2)), ('parsers', dict(part=0, parts=3)), ('parsers', dict(part=1, parts=3)), ('parsers', dict(part=2, parts=3)), ('bombs', {}), ('recordings', {}), ('foreign_code', {})]}


def do(name, options, work, size):
    "One part, in a process of its own: the rows it counted."
    work = Path(work)
    work.mkdir(parents=True)
    os.chdir(work)
    os.environ |= dict(TQDM_DISABLE='1', OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', HF_HOME=str(work/'home'))
    campaign = Campaign('hostile')
    start = time.perf_counter()
    globals()[name](Judge(campaign, work.with_suffix('.journal')), work, size, **options)
    if os.environ.get('WHISPER_NB_CAMPAIGN_TIMES'): print(f'{name} {options}: {time.perf_counter() - start:.1f} s', file=sys.stderr)
    shutil.rmtree(work, ignore_errors=True)
    return campaign.rows


def run(campaign, work, size):
    "The campaign: each part in a process that can be spared; one that dies is a loss."
    from tqdm.auto import tqdm
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), max_tasks_per_child=None if size == 'short' else 1) as pool:
        jobs = {f'{name}-{number}': pool.submit(do, name, options, str(Path(work)/f'{name}-{number}'), size) for number, (name, options) in enumerate(TASKS[size])}
        for name, job in tqdm(jobs.items(), 'hostile input', unit='part'):
            try: campaign.add(job.result())
            except Exception as error:
                journal = Path(work)/f'{name}.journal'
                campaign.count('a process', name, 'lost', f'{error!r:.300}, at: {journal.read_text() if journal.exists() else "the beginning"}')
