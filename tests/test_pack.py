"Packing and unpacking: usual tools, identical bytes, hostile and damaged archives, kills, limits."
import gzip, hashlib, io, json, os, random, shutil, stat, struct, subprocess, sys, tarfile, time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from whisper_nb.errors import CheckError, RequestError, StepError, WhisperNbError, explain
from whisper_nb.files import build_manifest, list_files
from whisper_nb.archive import check_archive
from whisper_nb.compression import FORMATS, PIECE
from whisper_nb.pack import pack
from whisper_nb.unpack import unpack

NAME = 'toy-ct2-int8'
SOURCE = {'kind': 'local', 'name': 'toy'}

def make_model(directory, size=20_000, seed=1, files=None):
    "A directory that looks like a model."
    directory.mkdir(parents=True)
    contents = files or {'config.json': b'{}', 'model.bin': random.Random(seed).randbytes(size // 2) + bytes(size // 2), 'vocabulary.json': b'["a"]'}
    for name, content in contents.items():
        (directory/name).parent.mkdir(parents=True, exist_ok=True)
        (directory/name).write_bytes(content)
    (directory/'manifest.json').write_text(build_manifest(directory, directory.name, 'ctranslate2', SOURCE).to_json())
    return directory

def contents(directory): return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob('*') if path.is_file()}
def visible(directory): return sorted(path.name for path in directory.iterdir() if path.name not in ('.locks', '.staging')) if directory.exists() else []
def run(directory, *command): return subprocess.run(command, cwd=directory, capture_output=True, text=True)

@pytest.fixture
def model(tmp_path): return make_model(tmp_path/'models'/NAME)

@pytest.fixture
def archive(model, tmp_path): return pack(model, tmp_path/'outputs').path

# The usual tools

def test_usual_tools(model, archive, tmp_path):
    assert sorted(visible(archive.parent)) == [f'{NAME}.tar.gz', f'{NAME}.tar.gz.md5', f'{NAME}.tar.gz.sha256']
    for tool in ('md5', 'sha256'):
        done = run(archive.parent, f'{tool}sum', '--strict', '-c', f'{archive.name}.{tool}')
        assert (done.returncode, done.stdout) == (0, f'{archive.name}: OK\n'), done.stderr
    (tmp_path/'tar').mkdir()
    done = run(tmp_path/'tar', 'tar', 'xzf', archive)
    assert (done.returncode, done.stderr) == (0, '')
    assert contents(tmp_path/'tar'/NAME) == contents(model)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in (tmp_path/'tar'/NAME).iterdir())
    assert run(tmp_path, 'gzip', '-t', archive).returncode == 0
    listing = run(tmp_path, 'tar', 'tvzf', archive, '--numeric-owner', '--utc').stdout.splitlines()
    assert all(line.startswith('-rw-r--r-- 0/0') and '1970-01-01 00:00' in line for line in listing)
    assert listing[0].endswith('/manifest.json')

def test_result(model, tmp_path):
    first = pack(model, tmp_path/'outputs')
    assert not first.reused and first.bytes == first.path.stat().st_size and 0 < first.ratio < 1 and first.seconds > 0
    assert first.source_bytes == sum(map(len, contents(model).values()))
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.md5 == hashlib.md5(first.path.read_bytes()).hexdigest()
    again = pack(model, tmp_path/'outputs')
    assert again.reused and (again.md5, again.sha256, again.bytes) == (first.md5, first.sha256, first.bytes)
    checked = check_archive(first.path)
    assert (checked.name, checked.sha256, checked.sidecars) == (NAME, first.sha256, ('md5', 'sha256'))

# The same bytes

def test_same_bytes(model, tmp_path):
    digests = {pack(model, tmp_path/'one').sha256}
    for path in model.iterdir(): path.touch(); path.chmod(0o600)
    digests.add(pack(model, tmp_path/'one', fresh=True).sha256)
    copy = tmp_path/'a place with späces'/NAME
    shutil.copytree(model, copy)
    digests |= {pack(copy, tmp_path/f'ö {threads}', threads=threads).sha256 for threads in (1, 2, 3, 5)}
    assert len(digests) == 1

def test_same_bytes_over_block_borders(tmp_path):
    "Sizes around the compressor's blocks and tar's blocks, and an empty file."
    generator = random.Random(3)
    files = {f'file-{size}': generator.randbytes(size) for size in (0, 1, 511, 512, 513, (1 << 20) - 512, 1 << 20, (1 << 20) + 1, 3_333_333)}
    model = make_model(tmp_path/'models'/'sizes', files=files)
    assert len({pack(model, tmp_path/f'{threads}', threads=threads).sha256 for threads in (1, 2, 4)}) == 1
    assert contents(unpack(tmp_path/'1'/'sizes.tar.gz', tmp_path/'back')) == contents(model)

def test_subdirectories_and_long_names(tmp_path):
    model = make_model(tmp_path/'models'/('n' * 90), files={f"{'s' * 60}/{'f' * 90}": b'deep', 'a b+c=d,e@f': b'odd'})
    back = unpack(pack(model, tmp_path/'outputs').path, tmp_path/'back')
    assert contents(back) == contents(model)
    too_long = make_model(tmp_path/'models'/'toy', files={'f' * 150: b'x'})
    with pytest.raises(RequestError, match='too long'): pack(too_long, tmp_path/'outputs')
    assert visible(tmp_path/'outputs') == [f"{'n' * 90}.tar.gz{ending}" for ending in ('', '.md5', '.sha256')]

# Formats

def zstd():
    "Zstandard, wherever this Python has it."
    try: from compression import zstd
    except ImportError: from backports import zstd
    return zstd

@pytest.fixture
def larger(tmp_path): return make_model(tmp_path/'larger'/NAME, 5_000_000) # several pieces

@pytest.mark.parametrize('format', FORMATS)
def test_same_bytes_in_each_format(format, larger, tmp_path):
    made = [pack(larger, tmp_path/f'{threads}', format=format, threads=threads) for threads in (1, 2, 5)]
    assert len({each.sha256 for each in made}) == 1
    archive = made[0].path
    assert archive.name == f'{NAME}.{format}' and pack(larger, archive.parent, format=format).reused
    assert sorted(visible(archive.parent)) == [archive.name, f'{archive.name}.md5', f'{archive.name}.sha256']
    assert check_archive(archive).sha256 == made[0].sha256
    assert contents(unpack(archive, tmp_path/'back')) == contents(larger)
    assert tar_in(archive) == tar_in(pack(larger, tmp_path/'stored', format='tar').path)

def tar_in(archive):
    "What an archive holds, read with the standard library alone."
    data = archive.read_bytes()
    return gzip.decompress(data) if archive.name.endswith('.gz') else zstd().decompress(data) if archive.name.endswith('.zst') else data

@pytest.mark.parametrize('format,command,needed', [('tar.gz', 'tar xzf {}', 'tar'), ('tar.gz', 'gzip -dc {} | tar xf -', 'gzip'), ('tar', 'tar xf {}', 'tar'),
    ('tar.zst', 'tar --zstd -xf {}', 'zstd'), ('tar.zst', 'zstd -q -d -c {} | tar xf -', 'zstd'), ('tar.zst', 'pzstd -q -d -c {} | tar xf -', 'pzstd')])
def test_usual_tools_in_each_format(format, command, needed, larger, tmp_path):
    if not shutil.which(needed): pytest.skip(f'there is no {needed} here')
    archive = pack(larger, tmp_path/'outputs', format=format).path
    for tool in ('md5', 'sha256'): assert run(archive.parent, f'{tool}sum', '--strict', '-c', f'{archive.name}.{tool}').returncode == 0
    (tmp_path/'tools').mkdir()
    subprocess.run(command.format(archive), shell=True, check=True, cwd=tmp_path/'tools')
    assert contents(tmp_path/'tools'/NAME) == contents(larger)
    if needed == 'gzip': assert run(tmp_path, 'gzip', '-t', archive).returncode == 0
    if needed == 'zstd': assert run(tmp_path, 'zstd', '-q', '-t', archive).returncode == 0

@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('threads', [1, 3])
def test_single_stream(format, threads, larger, tmp_path):
    "An archive as other programs write it: one stream, which one thread reads."
    content = tar_in(pack(larger, tmp_path/'outputs', format='tar').path)
    packer = {'tar.gz': gzip.compress, 'tar.zst': zstd().compress, 'tar': bytes}[format]
    (tmp_path/f'other.{format}').write_bytes(packer(content))
    assert check_archive(tmp_path/f'other.{format}').sidecars == ()
    assert contents(unpack(tmp_path/f'other.{format}', tmp_path/'back')) == contents(larger)
    (tmp_path/f'bad.{format}').write_bytes(packer(content)[:-9_000])
    refused(CheckError, 'damaged', unpack, tmp_path/f'bad.{format}', tmp_path/'bad')
    (tmp_path/f'bad.{format}').write_bytes(packer(content) + b'more')
    refused(CheckError, '', unpack, tmp_path/f'bad.{format}', tmp_path/'bad')
    assert visible(tmp_path/'bad') == []

def test_command(larger, tmp_path):
    "`whisper-nb pack --format` and `whisper-nb unpack`; another format is a wrong request."
    command = Path(sys.executable).with_name('whisper-nb')
    for format in FORMATS:
        assert run(tmp_path, command, 'pack', larger, '--format', format).returncode == 0
        assert run(tmp_path, command, 'unpack', f'outputs/{NAME}.{format}', format).returncode == 0
        assert contents(tmp_path/format/NAME) == contents(larger)
    done = run(tmp_path, command, 'pack', larger, '--format', 'zip')
    assert done.returncode == 2 and 'tar.zst' in done.stderr

def test_tar_with_zstd(larger, tmp_path):
    if not shutil.which('zstd'): pytest.skip('there is no zstd here')
    members = [f'{NAME}/manifest.json', *(f'{NAME}/{name}' for name in list_files(larger))]
    assert run(larger.parent, 'tar', '--zstd', '-cf', tmp_path/'foreign.tar.zst', *members).returncode == 0
    assert contents(unpack(tmp_path/'foreign.tar.zst', tmp_path/'back')) == contents(larger)

# Damaged and hostile pieces

def pieces_of(archive):
    "The packed pieces of an archive, heads included."
    format, data, found = FORMATS[archive.name.split('.', 1)[1]], archive.read_bytes(), []
    while data:
        size = format.head + format.size(data[:format.head])
        found.append(data[:size])
        data = data[size:]
    return found

def claim(piece, format, size):
    "The same piece with another size in its head: what follows the head, in bytes."
    head = FORMATS[format].head
    return piece[:head - 4] + struct.pack('<I', size + head if format == 'tar.gz' else size) + piece[head:]

@pytest.mark.parametrize('format', ['tar.gz', 'tar.zst'])
def test_damaged_pieces(format, larger, tmp_path):
    archive, repack = pack(larger, tmp_path/'outputs', format=format).path, FORMATS[format].pack
    pieces, dest = pieces_of(archive), tmp_path/'dest'
    assert len(pieces) == 5
    first, second, third, *rest = pieces
    body = len(second) - FORMATS[format].head
    whole = tar_in(archive)
    cases = {
        'swapped': [first, third, second, *rest],
        'left out': [first, third, *rest],
        'twice': [first, second, second, third, *rest],
        'cut at a border': pieces[:-1],
        'cut in a head': [*pieces[:-1], pieces[-1][:7]],
        'cut in a piece': [*pieces[:-1], pieces[-1][:-3]],
        'bytes after the end': [*pieces, b'?'],
        'zeros after the end': [*pieces, bytes(20)],
        'an empty piece after the end': [*pieces, repack(b'')],
        'an empty piece within': [first, repack(b''), *pieces[1:]],
        'a piece without its head': [first, second[FORMATS[format].head:], third, *rest],
        'size too small': [first, claim(second, format, body - 1), third, *rest],
        'size too large': [first, claim(second, format, body + 1), third, *rest],
        'size of two': [first, claim(second, format, body + len(third)), third, *rest],
        'size 0': [first, claim(second, format, 0), third, *rest],
        'size huge': [first, claim(second, format, 2**32 - 30), third, *rest],
        'first size huge': [claim(first, format, 2**32 - 30), second, third, *rest],
        'expands to more than a piece': [repack(whole[:2*PIECE]), *pieces[2:]],
        'one byte more than a piece': [repack(whole[:PIECE + 1]), repack(whole[PIECE + 1:2*PIECE]), *pieces[2:]],
        'no first head': [first[FORMATS[format].head:], *pieces[1:]],
    }
    for name, damaged in cases.items():
        (tmp_path/f'bad.{format}').write_bytes(b''.join(damaged))
        refused(CheckError, '', unpack, tmp_path/f'bad.{format}', dest)
        refused(CheckError, '', check_archive, tmp_path/f'bad.{format}')
        assert visible(dest) == [], name
    generator = random.Random(4)
    for _ in range(60): # single bits of the heads
        number, position = generator.randrange(5), generator.randrange(FORMATS[format].head)
        damaged = [bytearray(piece) for piece in pieces]
        damaged[number][position] ^= 1 << generator.randrange(8)
        (tmp_path/f'bad.{format}').write_bytes(b''.join(damaged))
        refused(CheckError, '', unpack, tmp_path/f'bad.{format}', dest)
    (tmp_path/f'good.{format}').write_bytes(b''.join(repack(whole[start:start + 100_000]) for start in range(0, len(whole), 100_000)))
    assert contents(unpack(tmp_path/f'good.{format}', dest)) == contents(larger) # smaller pieces are nobody's harm

@pytest.mark.parametrize('format', ['tar.gz', 'tar.zst'])
def test_bombs_in_pieces(format, tmp_path):
    "Pieces that claim, or hold, hundreds of megabytes: refused in little memory, with many threads."
    bad, dest, repack = tmp_path/f'bad.{format}', str(tmp_path/'dest'), FORMATS[format].pack
    huge = repack(bytes(400_000_000))
    bad.write_bytes(huge) # as the very first piece
    peak_and_error(tmp_path, f'unpack({str(bad)!r}, {dest!r})', 'damaged')
    start = tar_of(tmp_path/'start.tar', [(special(MEMBER, tarfile.REGTYPE, size=300_000_000), None)], GOOD.replace(b'"size": 2', b'"size": 300000000'), packer=lambda tar: tar[:1536])
    bad.write_bytes(repack(start.read_bytes()) + huge * 20)
    peak_and_error(tmp_path, f'unpack({str(bad)!r}, {dest!r})', 'damaged')
    bad.write_bytes(claim(repack(start.read_bytes()), format, 2**31) + bytes(300_000_000))
    peak_and_error(tmp_path, f'unpack({str(bad)!r}, {dest!r})', 'damaged')
    assert visible(tmp_path/'dest') == []

def test_bomb_in_a_zstd_stream(tmp_path):
    "A stream may ask for a window of 128 MiB, and no more, whatever it holds."
    start = tar_of(tmp_path/'start.tar', [(special(MEMBER, tarfile.REGTYPE, size=300_000_000), None)], GOOD, packer=lambda tar: tar[:1536]).read_bytes()
    for window, word in ((27, 'refused'), (30, 'damaged')):
        options = {zstd().CompressionParameter.window_log: window, zstd().CompressionParameter.compression_level: 1}
        stream = zstd().ZstdCompressor(options=options)
        (tmp_path/'bomb.tar.zst').write_bytes(b''.join([stream.compress(start), *(stream.compress(bytes(10_000_000)) for _ in range(40)), stream.flush()]))
        peak_and_error(tmp_path, f"unpack({str(tmp_path/'bomb.tar.zst')!r}, {str(tmp_path/'dest')!r})", word, limit=300_000_000)
    assert visible(tmp_path/'dest') == []

# Reuse

@pytest.mark.parametrize('spoil', ['md5', 'sha256', 'archive', 'no md5', 'manifest', 'swapped'])
def test_not_reused_when_anything_differs(spoil, model, archive):
    right = archive.read_bytes()
    if spoil in ('md5', 'sha256'): archive.with_name(f'{archive.name}.{spoil}').write_text('0' * 64 + f'  {archive.name}\n')
    elif spoil == 'archive': archive.write_bytes(right[:-1] + b'x')
    elif spoil == 'no md5': archive.with_name(f'{archive.name}.md5').unlink()
    elif spoil == 'swapped': archive.with_name(f'{archive.name}.md5').write_text(archive.with_name(f'{archive.name}.sha256').read_text())
    else:
        (model/'config.json').write_bytes(b'{"new": 1}')
        (model/'manifest.json').write_text(build_manifest(model, NAME, 'ctranslate2', SOURCE).to_json())
    again = pack(model, archive.parent)
    assert not again.reused
    assert (archive.read_bytes() == right) == (spoil != 'manifest')
    assert check_archive(archive).sidecars == ('md5', 'sha256')

# What pack refuses

def refused(error, match, work, *arguments, **options):
    "The work raises `error`, and what the user reads is two lines."
    with pytest.raises(error, match=match or None) as raised: work(*arguments, **options)
    problem = explain(raised.value)
    assert problem.what and problem.advice and '\n' not in problem.what + problem.advice
    return problem

def test_pack_refuses(model, tmp_path):
    outputs = tmp_path/'outputs'
    refused(RequestError, 'not a directory', pack, tmp_path/'nothing', outputs)
    refused(RequestError, 'no manifest', pack, tmp_path, outputs)
    refused(RequestError, 'kind of archive', pack, model, outputs, format='zip')
    refused(RequestError, 'own directory', pack, model, model/'outputs')
    (model/'extra').write_text('x')
    refused(CheckError, 'not in the manifest', pack, model, outputs)
    (model/'extra').unlink()
    (model/'link').symlink_to('config.json')
    refused(CheckError, 'symbolic link', pack, model, outputs)
    (model/'link').unlink()
    os.mkfifo(model/'pipe')
    refused(CheckError, 'special file', pack, model, outputs)
    (model/'pipe').unlink()
    (model/'config.json').write_text('[]') # same size
    refused(StepError, 'changed', pack, model, outputs)
    (model/'config.json').write_text('{}\n')
    refused(StepError, 'changed', pack, model, outputs)
    (model/'config.json').unlink()
    refused(CheckError, 'missing', pack, model, outputs)
    (model/'manifest.json').write_text('{')
    refused(CheckError, 'broken', pack, model, outputs)
    assert visible(outputs) == []

def test_failed_pack_keeps_the_old_archive(model, archive):
    before = contents(archive.parent)
    (model/'config.json').write_text('[]')
    with pytest.raises(StepError): pack(model, archive.parent, fresh=True)
    assert contents(archive.parent) == before

def test_unwritable_outputs(model, tmp_path):
    (tmp_path/'file').write_text('')
    refused(StepError, 'cannot write to', pack, model, tmp_path/'file')
    refused(StepError, 'cannot write to', pack, model, tmp_path/'file'/'below')
    refused(StepError, 'cannot write to', pack, model, '/proc/outputs')
    if os.getuid(): # root may write anywhere
        (tmp_path/'shut').mkdir(mode=0o500)
        refused(StepError, 'cannot write to', pack, model, tmp_path/'shut')

def test_disk_full(model, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    before = contents(archive.parent)
    assert 'needs' in refused(StepError, 'are free', pack, model, archive.parent, fresh=True).what
    refused(StepError, 'are free', unpack, archive, tmp_path/'back')
    assert contents(archive.parent) == before and visible(tmp_path/'back') == []

def test_disk_fills_up_on_the_way(tmp_path):
    "The write itself fails (a limit on file sizes stands in for a full disk)."
    model = make_model(tmp_path/'models'/NAME, 6_000_000)
    archive = pack(model, tmp_path/'good').path
    code = f'''
import resource, signal
from whisper_nb.pack import pack
from whisper_nb.unpack import unpack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
for work, target in ((pack, {str(model)!r}), (unpack, {str(archive)!r})):
    try: work(target, {str(tmp_path/'target')!r})
    except OSError as error: print(error.errno)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ['27', '27'], done.stderr # EFBIG
    assert visible(tmp_path/'target') == []

# Hostile archives

def tar_of(path, members, manifest=None, first=f'{NAME}/manifest.json', packer=gzip.compress):
    "A tar.gz of the given (TarInfo or name, content) pairs behind a manifest."
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=tarfile.GNU_FORMAT) as tar:
        for member, content in ([(first, manifest)] if manifest is not None else []) + list(members):
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if content is None: tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT)) # whatever size it claims
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path.write_bytes(packer(buffer.getvalue()))
    return path

def special(name, type, **fields):
    info = tarfile.TarInfo(name)
    info.type = type
    for key, value in fields.items(): setattr(info, key, value)
    return info

def manifest_of(files): # name → content
    records = {name: {'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    fields = dict(version=1, name=NAME, format='ctranslate2', source=SOURCE, made_by={}, quantization=None, made_from=None, files=records)
    return json.dumps(fields).encode()

GOOD = manifest_of({'a.json': b'{}'})
MEMBER = f'{NAME}/a.json'

def declared(size):
    "A member whose header claims `size` bytes that are not there."
    return [(special(MEMBER, tarfile.REGTYPE, size=size), None)]

HOSTILE = {
    'absolute path': (GOOD, [('/tmp/evil', b'{}')]),
    'absolute path of a listed name': (GOOD, [('/' + MEMBER, b'{}')]),
    'parent': (GOOD, [(f'{NAME}/../evil', b'{}')]),
    'parent first': (GOOD, [('../evil', b'{}')]),
    'dot': (GOOD, [(f'./{MEMBER}', b'{}')]),
    'double slash': (GOOD, [(f'{NAME}//a.json', b'{}')]),
    'other directory': (GOOD, [('other/a.json', b'{}')]),
    'backslash': (GOOD, [(f'{NAME}\\..\\evil', b'{}')]),
    'no directory': (GOOD, [('a.json', b'{}')]),
    'symbolic link': (GOOD, [(special(MEMBER, tarfile.SYMTYPE, linkname='/etc/passwd'), None)]),
    'symbolic link to a directory': (GOOD, [(special(f'{NAME}/d', tarfile.SYMTYPE, linkname='/tmp'), None), (f'{NAME}/d/evil', b'{}')]),
    'hard link': (GOOD, [(special(MEMBER, tarfile.LNKTYPE, linkname=f'{NAME}/manifest.json'), None)]),
    'character device': (GOOD, [(special(MEMBER, tarfile.CHRTYPE, devmajor=1, devminor=5), None)]),
    'block device': (GOOD, [(special(MEMBER, tarfile.BLKTYPE), None)]),
    'FIFO': (GOOD, [(special(MEMBER, tarfile.FIFOTYPE), None)]),
    'directory': (GOOD, [(special(MEMBER, tarfile.DIRTYPE), None)]),
    'contiguous file': (GOOD, [(special(MEMBER, tarfile.CONTTYPE), b'{}')]),
    'sparse file': (GOOD, [(special(MEMBER, tarfile.GNUTYPE_SPARSE), b'{}')]),
    'multi-volume': (GOOD, [(special(MEMBER, b'M'), b'{}')]),
    'unknown type': (GOOD, [(special(MEMBER, b'Z'), b'{}')]),
    'pax header': (GOOD, [(special('pax', tarfile.XHDTYPE), b'20 path=/tmp/evil\n\n'), (MEMBER, b'{}')]),
    'global pax header': (GOOD, [(special('pax', tarfile.XGLTYPE), b'20 path=/tmp/evil\n\n'), (MEMBER, b'{}')]),
    'long name': (GOOD, [('x' * 5000, b'{}')]),
    'long link': (GOOD, [(special(MEMBER, tarfile.SYMTYPE, linkname='x' * 5000), None)]),
    'member twice': (GOOD, [(MEMBER, b'{}'), (MEMBER, b'{}')]),
    'manifest twice': (GOOD, [(f'{NAME}/manifest.json', GOOD), (MEMBER, b'{}')]),
    'case clash': (manifest_of({'a.json': b'{}', 'A.json': b'[]'}), [(MEMBER, b'{}'), (f'{NAME}/A.json', b'[]')]),
    'clash with the manifest': (manifest_of({'Manifest.json': b'{}'}), [(f'{NAME}/Manifest.json', b'{}')]),
    'file and directory': (manifest_of({'a': b'{}', 'a/b': b'[]'}), [(f'{NAME}/a', b'{}'), (f'{NAME}/a/b', b'[]')]),
    'listed parent': (manifest_of({'../evil': b'{}'}), [(f'{NAME}/../evil', b'{}')]),
    'listed absolute': (manifest_of({'/tmp/evil': b'{}'}), [('/tmp/evil', b'{}')]),
    'listed hidden': (manifest_of({'.bashrc': b'{}'}), [(f'{NAME}/.bashrc', b'{}')]),
    'listed trailing dot': (manifest_of({'a.': b'{}'}), [(f'{NAME}/a.', b'{}')]),
    'listed new line': (manifest_of({'a\nb': b'{}'}), [(f'{NAME}/a\nb', b'{}')]),
    'composed and decomposed': (manifest_of({'é': b'{}', 'e\u0301': b'[]'}), [(f'{NAME}/é', b'{}'), (f'{NAME}/e\u0301', b'[]')]),
    'right-to-left override': (manifest_of({'a\u202egpj.exe': b'{}'}), [(f'{NAME}/a\u202egpj.exe', b'{}')]),
    'fullwidth slash': (manifest_of({'..\uff0fevil': b'{}'}), [(f'{NAME}/..\uff0fevil', b'{}')]),
    'Kelvin sign': (manifest_of({'\u212a': b'{}', 'k': b'[]'}), [(f'{NAME}/\u212a', b'{}'), (f'{NAME}/k', b'[]')]),
    'missing file': (GOOD, []),
    'extra file': (GOOD, [(MEMBER, b'{}'), (f'{NAME}/b.json', b'{}')]),
    'too long': (GOOD, [(MEMBER, b'{}' * 1_000_000)]),
    'too short': (GOOD, [(MEMBER, b'{')]),
    'other content': (GOOD, [(MEMBER, b'[]')]),
    'huge declared size': (GOOD, declared(8**11 - 1)),
    'enormous declared size': (GOOD, declared(2**62)),
    'negative declared size': (GOOD, declared(-1)),
    'size beyond any disk': (GOOD.replace(b'"size": 2', b'"size": 1000000000000000000'), declared(10**18)),
    'negative size in the manifest': (GOOD.replace(b'"size": 2', b'"size": -2'), [(MEMBER, b'{}')]),
    'size that is no whole number': (GOOD.replace(b'"size": 2', b'"size": 2.0'), [(MEMBER, b'{}')]),
    'manifest is no object': (b'[]', [(MEMBER, b'{}')]),
    'manifest of nested lists': (b'[' * 500_000, [(MEMBER, b'{}')]),
    'manifest of an endless number': (GOOD.replace(b'"size": 2', b'"size": ' + b'9' * 100_000), [(MEMBER, b'{}')]),
    'manifest is not UTF-8': (b'\xff\xfe{}', [(MEMBER, b'{}')]),
    'manifest too large': (GOOD + b' ' * (2 << 20), [(MEMBER, b'{}')]),
    'no manifest': (None, [(MEMBER, b'{}')]),
    'manifest last': (None, [(MEMBER, b'{}'), (f'{NAME}/manifest.json', GOOD)]),
    'nothing': (None, []),
}

@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_archive(case, tmp_path):
    manifest, members = HOSTILE[case]
    path = tar_of(tmp_path/'bad.tar.gz', members, manifest)
    for kept in (False, True): # into an empty place, and over a model that must stay
        dest = tmp_path/f'dest-{kept}'
        if kept: make_model(dest/NAME)
        before = contents(tmp_path)
        started = time.monotonic()
        refused(WhisperNbError, '', unpack, path, dest)
        refused(WhisperNbError, '', check_archive, path)
        assert {name: content for name, content in contents(tmp_path).items() if '.locks' not in name} == \
            {name: content for name, content in before.items() if '.locks' not in name}
        assert visible(dest) == ([NAME] if kept else []) and time.monotonic() - started < 5
    assert not Path('/tmp/evil').exists()

@pytest.mark.parametrize('top', ['..', '.', '.ssh', '/tmp', 'a/b', 'a\\b', 'é', 'a\u202eb', 'x' * 220, 'a.', ' a', ''])
def test_hostile_directory_name(top, tmp_path):
    path = tar_of(tmp_path/'bad.tar.gz', [(f'{top}/a.json', b'{}')], GOOD, first=f'{top}/manifest.json')
    refused(CheckError, '', unpack, path, tmp_path/'dest')
    assert visible(tmp_path/'dest') == []

def test_good_foreign_archive(tmp_path):
    "Not made by pack, but all in order: a directory entry at the front, another gzip, another order."
    files = {'a.json': b'{}', 'b.json': b'[]'}
    members = [(special(NAME, tarfile.DIRTYPE), None), (f'{NAME}/manifest.json', manifest_of(files)), (f'{NAME}/b.json', b'[]'), (MEMBER, b'{}')]
    back = unpack(tar_of(tmp_path/'other.tar.gz', members), tmp_path/'dest')
    assert list_files(back) == sorted(files)

def test_decompression_bomb(tmp_path):
    "A few kilobytes that unpack to much more than the manifest says: refused in little memory."
    start = tar_of(tmp_path/'start.tar', [(special(MEMBER, tarfile.REGTYPE, size=300_000_000), None)], GOOD, packer=lambda tar: tar[:1536])
    (tmp_path/'bomb.tar.gz').write_bytes(gzip.compress(start.read_bytes() + bytes(300_000_000), 1))
    peak_and_error(tmp_path, f"unpack({str(tmp_path/'bomb.tar.gz')!r}, {str(tmp_path/'dest')!r})", 'refused')
    assert visible(tmp_path/'dest') == []
    # as many zeros after the end mark
    good = tar_of(tmp_path/'good.tar', [(MEMBER, b'{}')], GOOD, packer=bytes).read_bytes()
    (tmp_path/'tail.tar.gz').write_bytes(gzip.compress(good + bytes(300_000_000), 1))
    peak_and_error(tmp_path, f"unpack({str(tmp_path/'tail.tar.gz')!r}, {str(tmp_path/'dest')!r})", 'refused')
    # a gzip header whose file name has no end
    (tmp_path/'name.tar.gz').write_bytes(b'\x1f\x8b\x08\x08' + bytes(6) + b'a' * 300_000_000)
    peak_and_error(tmp_path, f"unpack({str(tmp_path/'name.tar.gz')!r}, {str(tmp_path/'dest')!r})", 'damaged')

def peak_and_error(tmp_path, call, word, limit=150_000_000):
    "Run a call in a process of its own: what it raised, and its peak memory."
    code = f'''
from pathlib import Path
from whisper_nb.archive import check_archive
from whisper_nb.pack import *
from whisper_nb.unpack import *
error = None
try: {call}
except Exception as raised: error = raised
print([int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')][0])
print(error)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    peak, message = done.stdout.split('\n', 1)
    assert word in message, message
    assert int(peak) < limit, peak

@pytest.mark.parametrize('format', FORMATS)
def test_bounded_memory(format, tmp_path):
    "Whatever the size and however many threads there are."
    model = make_model(tmp_path/'models'/NAME, 300_000_000)
    outputs, dest = str(tmp_path/'outputs'), str(tmp_path/'dest')
    peak_and_error(tmp_path, f'pack({str(model)!r}, {outputs!r}, format={format!r}, threads=8)', 'None', 150_000_000)
    peak_and_error(tmp_path, f"unpack('{outputs}/{NAME}.{format}', {dest!r})", 'None', 150_000_000)
    many = 'import whisper_nb.streams; whisper_nb.streams.default_threads = lambda: 8; '
    peak_and_error(tmp_path, f"{many}check_archive('{outputs}/{NAME}.{format}')", 'None', 150_000_000)
    assert contents(tmp_path/'dest'/NAME).keys() == contents(model).keys()

def test_never_uses_temporary_directory(model, tmp_path):
    (tmp_path/'shut').write_text('')
    code = f'from whisper_nb.pack import *; from whisper_nb.unpack import *; a = pack({str(model)!r}, {str(tmp_path/"outputs")!r}); unpack(a.path, {str(tmp_path/"dest")!r})'
    subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'TMPDIR': str(tmp_path/'shut')}, cwd=tmp_path/'models')

# What may be replaced

def test_someone_elses_directory_is_left_alone(archive, tmp_path):
    dest = tmp_path/'dest'
    (dest/NAME).mkdir(parents=True)
    (dest/NAME/'thesis.txt').write_text('mine')
    refused(RequestError, 'not a prepared model', unpack, archive, dest)
    assert contents(dest/NAME) == {'thesis.txt': b'mine'}
    shutil.rmtree(dest/NAME)
    (dest/NAME).symlink_to(tmp_path/'models'/NAME)
    refused(RequestError, 'not a prepared model', unpack, archive, dest)
    (dest/NAME).unlink()
    (dest/NAME).write_text('a file')
    refused(RequestError, 'not a prepared model', unpack, archive, dest)
    assert (dest/NAME).read_text() == 'a file'

@pytest.mark.parametrize('spoil', ['flip', 'missing', 'extra', 'link', 'other', 'broken manifest'])
def test_spoiled_or_other_model_is_replaced(spoil, model, archive, tmp_path):
    final = unpack(archive, tmp_path/'dest')
    if spoil == 'flip': (final/'config.json').write_bytes(b'[]')
    elif spoil == 'missing': (final/'config.json').unlink()
    elif spoil == 'extra': (final/'extra').write_text('x')
    elif spoil == 'link': (final/'link').symlink_to('/etc')
    elif spoil == 'broken manifest': (final/'manifest.json').write_text('{')
    else:
        shutil.rmtree(final)
        make_model(final, seed=9)
    assert unpack(archive, tmp_path/'dest') == final
    assert contents(final) == contents(model) and visible(tmp_path/'dest') == [NAME]

def test_requests(tmp_path, model, archive):
    refused(RequestError, 'there is no archive', unpack, tmp_path/'nothing.tar.gz')
    refused(RequestError, 'there is no archive', check_archive, (tmp_path/'folder.tar.gz').mkdir() or tmp_path/'folder.tar.gz')
    assert '.tar.gz' in refused(RequestError, 'not an archive', unpack, tmp_path/'model.zip').advice
    (tmp_path/'file').write_text('')
    refused(StepError, 'cannot write to', unpack, archive, tmp_path/'file')

# Damaged archives

@pytest.mark.parametrize('line', ['', 'x', '0' * 64 + '  other.tar.gz\n', '0' * 64 + f'  {NAME}.tar.gz\n', '0' * 32 + f'  {NAME}.tar.gz\n', '\0' * 5000])
def test_wrong_sidecar(line, archive, tmp_path):
    archive.with_name(f'{archive.name}.sha256').write_text(line)
    refused(CheckError, 'sha256', unpack, archive, tmp_path/'dest')
    refused(CheckError, 'sha256', check_archive, archive)
    assert visible(tmp_path/'dest') == []

def test_wrong_md5(archive, tmp_path):
    md5, sha256 = [archive.with_name(f'{archive.name}.{each}') for each in ('md5', 'sha256')]
    md5.write_text('0' * 32 + f'  {archive.name}\n')
    refused(CheckError, 'md5', check_archive, archive)
    sha256.unlink() # what is left must match
    refused(CheckError, 'md5', unpack, archive, tmp_path/'dest')
    assert visible(tmp_path/'dest') == []

def test_sidecars_may_be_absent_or_binary(archive, tmp_path):
    sidecars = [archive.with_name(f'{archive.name}.{each}') for each in ('md5', 'sha256')]
    sidecars[1].write_text(sidecars[1].read_text().replace('  ', ' *'))
    assert check_archive(archive).sidecars == ('md5', 'sha256')
    for each in sidecars: each.unlink()
    assert check_archive(archive).sidecars == ()
    assert unpack(archive, tmp_path/'dest').is_dir()

def test_damaged_archives(model, archive, tmp_path):
    "Single bits, truncations, extensions and swapped blocks, seeded; nothing appears, nothing but our own errors."
    generator, right, expected = random.Random(11), archive.read_bytes(), contents(model)
    bad, dest, harmless = tmp_path/'bad.tar.gz', tmp_path/'dest', 0
    def flip():
        data, position = bytearray(right), generator.randrange(len(right))
        data[position] ^= 1 << generator.randrange(8)
        return bytes(data), position
    def swap():
        one, two = sorted(generator.sample(range(len(right) - 64), 2))
        data = bytearray(right)
        data[one:one+64], data[two:two+64] = data[two:two+64], data[one:one+64]
        return bytes(data), one
    for number in range(400):
        damaged, position = (flip if number % 2 else swap)()
        if number % 8 == 0: damaged, position = right[:generator.randrange(len(right))], -1
        if number % 8 == 2: damaged, position = right + generator.randbytes(generator.randrange(1, 50)), -1
        if damaged == right: continue
        bad.write_bytes(damaged)
        try: unpack(bad, dest)
        except CheckError: assert visible(dest) == []
        else: # gzip has bits without meaning (time and system in the header, lengths of codes that do not occur)
            assert position >= 3 and contents(dest/NAME) == expected
            shutil.rmtree(dest/NAME)
            harmless += 1
    assert harmless < 5
    for position in range(10): # with checksums beside it those are found too
        archive.write_bytes(right[:position] + bytes([right[position] ^ 1]) + right[position + 1:])
        refused(CheckError, '', unpack, archive, dest)
        assert visible(dest) == []

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strategies.data())
def test_fuzzed_headers(tmp_path_factory, data):
    "Any header with a right checksum, anywhere: a refusal, or exactly the model."
    folder = tmp_path_factory.mktemp('fuzz')
    tar = bytearray(tar_of(folder/'good.tar', [(MEMBER, b'{}')], GOOD, packer=bytes).read_bytes())
    start = data.draw(strategies.sampled_from([0, 512 + -(-len(GOOD) // 512) * 512]))
    for _ in range(data.draw(strategies.integers(1, 3))):
        position = data.draw(strategies.integers(0, 511))
        piece = data.draw(strategies.binary(min_size=1, max_size=12))[:512 - position]
        tar[start + position:start + position + len(piece)] = piece
    header = tar[start:start + 512]
    tar[start + 148:start + 156] = b'%06o\0 ' % (256 + sum(header[:148]) + sum(header[156:]))
    (folder/'bad.tar.gz').write_bytes(gzip.compress(bytes(tar), 1))
    try: back = unpack(folder/'bad.tar.gz', folder/'dest')
    except WhisperNbError: assert visible(folder/'dest') == []
    else: assert list_files(back) == ['a.json'] and back.parent == folder/'dest'
    shutil.rmtree(folder)

@settings(max_examples=100, deadline=None)
@given(strategies.binary(max_size=3000), strategies.booleans())
def test_fuzzed_bytes(tmp_path_factory, content, compressed):
    folder = tmp_path_factory.mktemp('fuzz')
    (folder/'bad.tar.gz').write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(WhisperNbError): unpack(folder/'bad.tar.gz', folder/'dest')
    assert visible(folder/'dest') == []
    shutil.rmtree(folder)

# Two at once

def test_two_at_once(model, tmp_path):
    "Two runs on the same directories: one waits, both end well."
    code = f'from whisper_nb.pack import *; from whisper_nb.unpack import *; print(unpack(pack({str(model)!r}, {str(tmp_path/"outputs")!r}, fresh=True).path, {str(tmp_path/"dest")!r}).name)'
    runs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [each.communicate(timeout=60)[0].strip() for each in runs] == [NAME] * 3
    assert contents(tmp_path/'dest'/NAME) == contents(model)
    assert len(visible(tmp_path/'outputs')) == 3 and visible(tmp_path/'dest') == [NAME]
