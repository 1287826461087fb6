"Signatures: what they cover, what breaks them, what keys they take, and how they travel in archives."
import base64, hashlib, io, json, os, random, shutil, subprocess, sys, tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_nb.archive import check_archive
from whisper_nb.errors import CheckError, MissingPackage, RequestError, explain
from whisper_nb.files import MANIFEST_NAME, SIGNATURE_NAME, build_manifest, differences, list_files, read_manifest
from whisper_nb.hub import download
from whisper_nb.models import DEMO_DIR
from whisper_nb.pack import pack
from whisper_nb.signing import KEY_PASSWORD, SignatureError, check_signature, read_signature, sign, signed_files
from whisper_nb.unpack import unpack, unpack_from
from whisper_nb.verify import verify

NAME = 'toy-ct2-int8'
FILES = {'config.json': b'{}', 'model.bin': random.Random(1).randbytes(10_000) + bytes(10_000), 'notes/LICENSE': b'free'}


def seal(directory):
    "Write the manifest of what is there; it names no tools, so that it is the same with every release."
    made = build_manifest(directory, directory.name, 'ctranslate2', {'kind': 'local', 'name': 'toy'})
    (directory / MANIFEST_NAME).write_text(replace(made, made_by={}).to_json())


def make_model(directory, files=FILES):
    "A directory that looks like a model."
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    seal(directory)
    return directory


def contents(directory): return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob('*') if path.is_file()}
def visible(directory): return sorted(path.name for path in directory.iterdir() if path.name not in ('.locks', '.staging')) if directory.exists() else []


def refused(error, words, work, *arguments, **options):
    "The work raises `error`, and what the user reads is two lines with the words in the first."
    with pytest.raises(error) as raised: work(*arguments, **options)
    problem = explain(raised.value)
    assert problem.what.strip() and problem.advice.strip() and '\n' not in problem.what + problem.advice
    assert words in problem.what, problem.what
    return problem


def write_key(path, key, password=None):
    "A pair of PEM files: PATH.key and PATH.pub."
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat, PublicFormat
    how = BestAvailableEncryption(password) if password else NoEncryption()
    path.with_suffix('.key').write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    path.with_suffix('.pub').write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    "A directory of keys: ours and other are good ones, the rest is not, or only with a password."
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    folder = tmp_path_factory.mktemp('keys')
    for name, curve in (('ours', ec.SECP256R1()), ('other', ec.SECP256R1()), ('p384', ec.SECP384R1()), ('p521', ec.SECP521R1()), ('k1', ec.SECP256K1())):
        write_key(folder / name, ec.generate_private_key(curve))
    write_key(folder / 'locked', ec.generate_private_key(ec.SECP256R1()), b'open sesame')
    write_key(folder / 'rsa', rsa.generate_private_key(65537, 2048))
    write_key(folder / 'ed25519', ed25519.Ed25519PrivateKey.generate())
    (folder / 'text.pub').write_text('no key')
    (folder / 'broken.key').write_text('-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n')
    return folder


@pytest.fixture
def model(tmp_path): return make_model(tmp_path / 'models' / NAME)

@pytest.fixture
def signed(model, keys):
    sign(model, keys / 'ours.key')
    return model


# What a signature covers

def test_signed_and_checked(model, keys):
    before = contents(model)
    made = sign(model, keys / 'ours.key')
    assert contents(model) == before | {SIGNATURE_NAME: read_signature(model)} and visible(model.parent) == [NAME]
    assert (made.name, made.files) == (NAME, 4) and made.seconds > 0
    der = base64.b64decode(''.join((keys / 'ours.pub').read_text().splitlines()[1:-1]))
    assert made.key == hashlib.sha256(der).hexdigest() == check_signature(model, keys / 'ours.pub').key
    assert SIGNATURE_NAME not in list_files(model) and differences(model, read_manifest(model)) == {}
    assert set(signed_files(read_signature(model))) == {MANIFEST_NAME, *FILES}


def test_again_and_with_other_curves(signed, keys):
    for name in ('p384', 'p521', 'other', 'ours'): assert sign(signed, keys / f'{name}.key').key == check_signature(signed, keys / f'{name}.pub').key


def test_the_library_agrees(signed, keys, tmp_path):
    "OpenSSF's library checks what is signed here, and what it signs by itself is taken here."
    from model_signing import hashing, signing, verifying
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys / 'ours.pub')
    verifier.verify(signed, signed / SIGNATURE_NAME)
    (signed / SIGNATURE_NAME).unlink()
    signing.Config().use_elliptic_key_signer(private_key=keys / 'ours.key').sign(signed, signed / SIGNATURE_NAME)
    assert check_signature(signed, keys / 'ours.pub').files == 4


def add(name, content=b'x'):
    def change(model):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    return change

CHANGES = {
    'a byte': (lambda model: (model / 'model.bin').write_bytes(b'?' + FILES['model.bin'][1:]), "'model.bin' was changed"),
    'the manifest': (lambda model: (model / MANIFEST_NAME).write_text((model / MANIFEST_NAME).read_text() + ' '), "'manifest.json' was changed"),
    'a file and the manifest': (lambda model: (add('config.json')(model), seal(model)), "'config.json' was changed after the model was signed (and 1 more)"),
    'added': (add('extra.json'), "'extra.json' was added"),
    'added below': (add('notes/extra'), "'notes/extra' was added"),
    'hidden': (add('.hidden'), "'.hidden' was added"),
    'git': (add('.git/config'), "'.git/config' was added"),
    'git attributes': (add('.gitattributes'), "'.gitattributes' was added"),
    'other case': (add('Config.json'), "'Config.json' was added"),
    'second signature': (add('notes/model.sig'), "'notes/model.sig' was added"),
    'removed': (lambda model: (model / 'config.json').unlink(), "'config.json' was removed"),
    'no manifest': (lambda model: (model / MANIFEST_NAME).unlink(), "'manifest.json' was removed"),
    'renamed': (lambda model: (model / 'config.json').rename(model / 'Config.JSON'), "was added after the model was signed (and 1 more)"),
    'a link': (lambda model: (model / 'link').symlink_to('config.json'), "symbolic link"),
    'linked file': (lambda model: ((model / 'config.json').rename(model.parent / 'c'), (model / 'config.json').symlink_to('../c')), "symbolic link"),
    'linked signature': (lambda model: ((model / SIGNATURE_NAME).rename(model.parent / 's'), (model / SIGNATURE_NAME).symlink_to('../s')), "symbolic link"),
    'no signature': (lambda model: (model / SIGNATURE_NAME).unlink(), 'is not signed'),
}

@pytest.mark.parametrize('change', CHANGES)
def test_any_change_breaks_it(change, signed, keys):
    work, words = CHANGES[change]
    work(signed)
    refused(CheckError, words, check_signature, signed, keys / 'ours.pub')


def test_what_is_not_covered(signed, keys, tmp_path):
    "Empty directories, permissions, times and the directory's own name make no other model."
    (signed / 'empty').mkdir()
    (signed / 'config.json').chmod(0o600)
    os.utime(signed / 'model.bin', (0, 0))
    assert check_signature(signed.rename(tmp_path / 'renamed'), keys / 'ours.pub').name == 'renamed'


# Signatures that are none

def payload(data): return json.loads(base64.b64decode(json.loads(data)['dsseEnvelope']['payload']))

def test_another_key_or_model(signed, keys, tmp_path):
    assert 'fingerprint' in refused(SignatureError, 'was not signed with the key', check_signature, signed, keys / 'other.pub').advice
    other = make_model(tmp_path / 'other' / NAME, FILES | {'config.json': b'[]'})
    sign(other, keys / 'ours.key')
    shutil.copy(other / SIGNATURE_NAME, signed)
    refused(SignatureError, "'config.json' was changed after the model was signed (and 1 more)", check_signature, signed, keys / 'ours.pub')


def test_key_named_falsely(signed, keys):
    "A signature by another key that says it is ours."
    ours = json.loads(read_signature(signed))['verificationMaterial']
    sign(signed, keys / 'other.key')
    (signed / SIGNATURE_NAME).write_text(json.dumps(json.loads(read_signature(signed)) | {'verificationMaterial': ours}))
    refused(SignatureError, 'is broken', check_signature, signed, keys / 'ours.pub')


@pytest.mark.parametrize('spoil', ['list', 'no key', 'type', 'format'])
def test_changed_signature(spoil, signed, keys, capsys):
    bundle = json.loads(read_signature(signed))
    if spoil == 'list': # with a list that agrees to the files
        (signed / 'config.json').write_bytes(b'[]')
        content = payload(read_signature(signed))
        for each in content['predicate']['resources']:
            if each['name'] == 'config.json': each['digest'] = hashlib.sha256(b'[]').hexdigest()
        bundle['dsseEnvelope']['payload'] = base64.b64encode(json.dumps(content).encode()).decode()
    elif spoil == 'no key': del bundle['verificationMaterial']['publicKey']['hint']
    elif spoil == 'type': bundle['dsseEnvelope']['payloadType'] = 'text/plain'
    else: bundle['mediaType'] = 'text/plain'
    (signed / SIGNATURE_NAME).write_text(json.dumps(bundle))
    refused(SignatureError, '', check_signature, signed, keys / 'ours.pub')
    assert capsys.readouterr().out == '' # the library writes warnings there


@pytest.mark.parametrize('data', [b'', b'{', b'{}', b'[]', b'null', b'7', b'"x"', b'\xff\xfe', b'[' * 100_000, b'{"dsseEnvelope": {"payload": "e30="}}', b'{"dsseEnvelope": {"payload": 5}}', bytes(2_000_000)],
    ids=lambda data: f'{data[:20]!r} {len(data)}')
def test_no_signature(data, signed, keys):
    (signed / SIGNATURE_NAME).write_bytes(data)
    refused(SignatureError, SIGNATURE_NAME, check_signature, signed, keys / 'ours.pub')
    refused(SignatureError, SIGNATURE_NAME, pack, signed, signed.parent.parent / 'outputs')


def test_damaged_signatures(signed, keys):
    "Single bits: a refusal in words, or, where the bit means nothing, exactly the model that was signed."
    right, generator, harmless = read_signature(signed), random.Random(5), 0
    for _ in range(60):
        data, position = bytearray(right), generator.randrange(len(right))
        data[position] ^= 1 << generator.randrange(8)
        (signed / SIGNATURE_NAME).write_bytes(data)
        try: check_signature(signed, keys / 'ours.pub')
        except SignatureError as error: assert error.what and error.advice
        else: harmless += 1
    assert harmless < 15
    (signed / 'config.json').write_bytes(b'[]')
    (signed / SIGNATURE_NAME).write_bytes(right)
    refused(SignatureError, 'config.json', check_signature, signed, keys / 'ours.pub')


def test_nothing_is_left_out(model, keys):
    "A signature by the right key that wants a file left out: the file counts."
    from model_signing import hashing, signing
    how = hashing.Config().use_file_serialization().set_ignored_paths(paths=['config.json', SIGNATURE_NAME])
    signing.Config().use_elliptic_key_signer(private_key=keys / 'ours.key').set_hashing_config(how).sign(model, model / SIGNATURE_NAME)
    assert 'config.json' in payload(read_signature(model))['predicate']['serialization']['ignore_paths']
    refused(SignatureError, "'config.json' was added", check_signature, model, keys / 'ours.pub')


def test_other_ways_to_hash(model, keys):
    from model_signing import hashing, signing
    for how in (hashing.Config().use_shard_serialization(), hashing.Config().use_file_serialization(hashing_algorithm='blake3')):
        signing.Config().use_elliptic_key_signer(private_key=keys / 'ours.key').set_hashing_config(how).sign(model, model / SIGNATURE_NAME)
        refused(SignatureError, 'SHA-256 of whole files', check_signature, model, keys / 'ours.pub')
        (model / SIGNATURE_NAME).unlink()


# Keys

@pytest.mark.parametrize('key, words', [('nowhere.key', 'there is no key'), ('ours.pub', 'not a private key'), ('text.pub', 'not a private key'), ('broken.key', 'cannot be read'),
    ('rsa.key', 'of the kind RSA'), ('ed25519.key', 'of the kind Ed25519'), ('k1.key', 'on the curve secp256k1'), ('locked.key', 'is encrypted')])
def test_keys_that_cannot_sign(key, words, model, keys):
    problem = refused(RequestError, words, sign, model, keys / key)
    assert KEY_PASSWORD in problem.advice if key == 'locked.key' else 'openssl' in problem.advice
    assert read_signature(model) is None and problem.exit_code == 2


@pytest.mark.parametrize('key, words', [('nowhere.pub', 'there is no key'), ('ours.key', 'is a private key'), ('text.pub', 'no public key'), ('rsa.pub', 'of the kind RSA'),
    ('ed25519.pub', 'of the kind Ed25519'), ('k1.pub', 'on the curve secp256k1')])
def test_keys_that_cannot_check(key, words, signed, keys, tmp_path):
    archive = pack(signed, tmp_path / 'outputs').path
    for work in (lambda: check_signature(signed, keys / key), lambda: verify(signed, public_key=keys / key), lambda: unpack(archive, tmp_path / 'dest', keys / key)):
        assert 'openssl' in refused(RequestError, words, work).advice
    assert not (tmp_path / 'dest').exists()


def test_password(model, keys, monkeypatch):
    "Only in the environment; a key without one does not mind."
    monkeypatch.setenv(KEY_PASSWORD, 'wrong')
    problem = refused(RequestError, 'does not open', sign, model, keys / 'locked.key')
    assert 'wrong' not in problem.what + problem.advice
    sign(model, keys / 'ours.key')
    monkeypatch.setenv(KEY_PASSWORD, 'open sesame')
    assert sign(model, keys / 'locked.key').key == check_signature(model, keys / 'locked.pub').key


def test_keys_of_the_openssl_command(model, tmp_path):
    "The two commands that messages name, and the older way, which writes the curve in front of the key."
    def openssl(*words): subprocess.run(['openssl', *words], cwd=tmp_path, check=True, capture_output=True)
    advice = refused(RequestError, 'there is no key', sign, model, tmp_path / 'model.key').advice
    for command in advice.removeprefix('make a pair: ').split('; '): openssl(*command.split()[1:])
    sign(model, tmp_path / 'model.key')
    assert check_signature(model, tmp_path / 'model.pub').files == 4
    openssl('ecparam', '-name', 'secp384r1', '-genkey', '-out', 'old.key')
    openssl('ec', '-in', 'old.key', '-pubout', '-out', 'old.pub')
    sign(model, tmp_path / 'old.key')
    assert check_signature(model, tmp_path / 'old.pub').files == 4


# What is not signed

@pytest.mark.parametrize('change', ['a byte', 'added', 'removed', 'hidden', 'a link'])
def test_only_what_is_proven_is_signed(change, model, keys):
    CHANGES[change][0](model)
    refused(CheckError, '', sign, model, keys / 'ours.key')
    assert read_signature(model) is None


def test_only_prepared_models_are_signed(model, keys, tmp_path):
    refused(RequestError, 'is not a directory', sign, tmp_path / 'nowhere', keys / 'ours.key')
    (model / MANIFEST_NAME).unlink()
    refused(RequestError, 'no manifest.json', sign, model, keys / 'ours.key')
    refused(RequestError, 'is not a directory', check_signature, tmp_path / 'nowhere', keys / 'ours.pub')



def test_a_failed_signing_keeps_the_old(signed, keys):
    before = read_signature(signed)
    (signed / 'config.json').write_bytes(b'[]')
    refused(CheckError, 'config.json', sign, signed, keys / 'other.key')
    assert read_signature(signed) == before


def test_made_anew_is_not_signed(keys, tmp_path):
    "A download writes a manifest of its own, so it leaves the signature of the directory it came from; a reused one keeps its own."
    shutil.copytree(DEMO_DIR, tmp_path / 'brought')
    first = download(tmp_path / 'brought', models_dir=tmp_path / 'one').path
    sign(first, keys / 'ours.key')
    assert read_signature(download(first, models_dir=tmp_path / 'two').path) is None
    assert download(tmp_path / 'brought', models_dir=tmp_path / 'one').reused and check_signature(first, keys / 'ours.pub')
    assert read_signature(download(tmp_path / 'brought', models_dir=tmp_path / 'one', fresh=True).path) is None


def test_no_network_no_output_no_temporary_directory(model, keys, tmp_path):
    "Not a name is looked up and not an address asked; standard output stays empty."
    (tmp_path / 'shut').write_text('')
    code = f'''import sys
def listen(event, arguments):
    if event in ('socket.connect', 'socket.sendto', 'socket.getaddrinfo', 'socket.gethostbyname'): raise SystemExit(event)
sys.addaudithook(listen)
from whisper_nb.signing import check_signature, sign
sign({str(model)!r}, {str(keys / 'ours.key')!r})
assert check_signature({str(model)!r}, {str(keys / 'ours.pub')!r}).files == 4'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'TMPDIR': str(tmp_path / 'shut')})
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_package_missing(signed, keys, monkeypatch, tmp_path):
    archive = pack(signed, tmp_path / 'outputs').path
    monkeypatch.setitem(sys.modules, 'model_signing', None)
    for work in (lambda: sign(signed, keys / 'ours.key'), lambda: check_signature(signed, keys / 'ours.pub'), lambda: verify(signed, public_key=keys / 'ours.pub'), lambda: unpack(archive, tmp_path / 'dest', keys / 'ours.pub')):
        assert refused(MissingPackage, 'not installed', work).advice == "pip install 'whisper_nb[signing]'"
    assert unpack(archive, tmp_path / 'dest').is_dir() # nobody needs it to unpack without a key
    assert [check.ok for check in verify(signed).checks if check.name == 'signature'] == [None]


# verify

def signature_of(found): return [(check.ok, check.detail) for check in found.checks if check.name == 'signature']

def test_verify(keys, tmp_path):
    demo = download('demo', models_dir=tmp_path / 'models').path
    assert signature_of(verify(demo)) == [] and verify(demo).ok
    assert signature_of(verify(demo, public_key=keys / 'ours.pub')) == [(False, "'demo' is not signed")]
    made = sign(demo, keys / 'ours.key')
    assert signature_of(verify(demo)) == [(None, 'signed; who signed was not checked: --public-key')] and verify(demo).ok and verify(demo).backends
    found = verify(demo, public_key=keys / 'ours.pub')
    assert found.ok and signature_of(found) == [(True, f'{made.files} files are, byte for byte, what was signed with the key {made.key}')]
    files = [check.detail for check in found.checks if check.name == 'files']
    assert f'{made.files - 1} files' in files[0] # neither the manifest nor the signature is one of the model's
    other = verify(demo, public_key=keys / 'other.pub')
    assert not other.ok and other.backends == () and signature_of(other)[0][0] is False
    sealed = read_manifest(demo)
    (demo / MANIFEST_NAME).write_text(replace(sealed, made_by={}).to_json())
    assert [check.name for check in verify(demo).failures] == ['signature'] and "void: 'manifest.json' was changed" in signature_of(verify(demo))[0][1]
    (demo / MANIFEST_NAME).unlink()
    assert signature_of(verify(demo))[0][0] is False and 'could not be checked' not in str(verify(demo))


# In archives

UNSIGNED = '3bf85b6002d519f668c5aea9a7c4c6de555364b9eda2c1d64dd2e37d2bc2e1eb' # Of the toy model's .tar before there were signatures

def test_unsigned_archives_are_as_they_were(model, tmp_path):
    assert pack(model, tmp_path / 'outputs', format='tar').sha256 == UNSIGNED


def test_signature_travels(signed, keys, tmp_path):
    for format in ('tar.gz', 'tar.zst', 'tar'):
        archive = pack(signed, tmp_path / 'outputs', format=format)
        assert check_archive(archive.path).signed and archive.source_bytes == sum(map(len, contents(signed).values()))
        back = unpack(archive.path, tmp_path / format, keys / 'ours.pub')
        assert contents(back) == contents(signed) and check_signature(back, keys / 'ours.pub').files == 4
    assert tarfile.open(archive.path).getnames()[:3] == [f'{NAME}/{name}' for name in (MANIFEST_NAME, SIGNATURE_NAME, 'config.json')]
    copy = shutil.copytree(signed, tmp_path / 'copy' / NAME)
    assert pack(copy, tmp_path / 'again', format='tar').sha256 == archive.sha256


def test_archive_is_reused_only_with_its_signature(model, keys, tmp_path):
    def again(): return pack(model, tmp_path / 'outputs').reused
    assert [again(), again()] == [False, True]
    sign(model, keys / 'ours.key')
    assert [again(), again()] == [False, True]
    sign(model, keys / 'ours.key')
    assert [again(), again()] == [False, True]
    (model / SIGNATURE_NAME).unlink()
    assert [again(), again()] == [False, True]


def test_unpack_refuses_what_was_not_signed(model, keys, tmp_path):
    dest, plain = tmp_path / 'dest', pack(model, tmp_path / 'plain').path
    refused(SignatureError, 'is not signed', unpack, plain, dest, keys / 'ours.pub')
    sign(model, keys / 'other.key')
    others = pack(model, tmp_path / 'others').path
    refused(SignatureError, 'was not signed with the key', unpack, others, dest, keys / 'ours.pub')
    assert visible(dest) == []
    unpack(others, dest)
    refused(SignatureError, 'was not signed with the key', unpack, others, dest, keys / 'ours.pub') # also when it is there
    assert contents(dest / NAME) == contents(model)


def test_void_signatures_are_not_packed(signed, tmp_path):
    (signed / 'config.json').write_bytes(b'[]')
    seal(signed)
    assert 'whisper-nb sign' in refused(SignatureError, "void: 'config.json' was changed", pack, signed, tmp_path / 'outputs').advice


def repack(archive, change):
    "The archive's members, changed, written by another tool."
    with tarfile.open(archive) as tar: members = [(member, tar.extractfile(member).read()) for member in tar]
    made = archive.with_name('changed.tar')
    with tarfile.open(made, 'w') as tar:
        for member, data in change(members):
            member.size = 0 if member.issym() else len(data)
            tar.addfile(member, io.BytesIO(data))
    return made

def renamed(member, name):
    member.name = f'{NAME}/{name}'
    return member

def linked(member):
    member.type, member.linkname = tarfile.SYMTYPE, 'config.json'
    return member

@pytest.mark.parametrize('spoil, words', [('last', 'is not in its manifest.json'), ('twice', 'is not in its manifest.json'), ('large', 'too large'), ('empty', 'no signature'), ('link', 'symbolic link'), ('void', 'void'), ('listed', 'clashes')])
def test_hostile_signatures_in_archives(spoil, words, signed, keys, tmp_path):
    def change(members):
        manifest, (sig, data), *files = members
        if spoil == 'last': return [manifest, *files, (sig, data)]
        if spoil == 'twice': return [manifest, (sig, data), *files, (sig, data)]
        if spoil == 'large': return [manifest, (sig, data + b' ' * (1 << 20)), *files]
        if spoil == 'empty': return [manifest, (sig, b''), *files]
        if spoil == 'link': return [manifest, (linked(sig), b''), *files]
        if spoil == 'void':
            other = make_model(tmp_path / 'other' / NAME, {'config.json': b'[]'})
            sign(other, keys / 'ours.key')
            return [manifest, (sig, read_signature(other)), *files]
        fields = json.loads(manifest[1])
        fields['files'][SIGNATURE_NAME] = dict(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        return [(manifest[0], json.dumps(fields).encode()), (sig, data), *files]
    bad = repack(pack(signed, tmp_path / 'outputs', format='tar').path, change)
    refused(CheckError, words, unpack, bad, tmp_path / 'dest')
    refused(CheckError, 'is not signed' if spoil == 'last' else words, unpack, bad, tmp_path / 'dest', keys / 'ours.pub')
    refused(CheckError, words, check_archive, bad)
    assert visible(tmp_path / 'dest') == []


def test_a_changed_file_in_a_signed_archive(signed, keys, tmp_path):
    "The manifest is signed and says what the file must be; and who changes the manifest as well breaks the signature."
    archive = pack(signed, tmp_path / 'outputs', format='tar').path
    bad = repack(archive, lambda members: [(member, data.replace(b'{}', b'[]') if member.name.endswith('config.json') else data) for member, data in members])
    refused(CheckError, 'config.json', unpack, bad, tmp_path / 'dest', keys / 'ours.pub')
    def agree(members):
        (signed / 'config.json').write_bytes(b'[]')
        seal(signed)
        return [(member, read_signature(signed) if member.name.endswith(SIGNATURE_NAME) else (signed / member.name.removeprefix(f'{NAME}/')).read_bytes()) for member, _ in members]
    refused(CheckError, "'config.json' was changed", unpack, repack(archive, agree), tmp_path / 'dest', keys / 'ours.pub')
    assert visible(tmp_path / 'dest') == []


# unpack_from

class Trickle:
    "An archive that arrives in small pieces; `limit`: where the connection breaks."
    def __init__(self, path, limit=None, seed=3): self.data,self.place,self.limit,self.generator = path.read_bytes(),0,limit,random.Random(seed)
    def read(self, size):
        if self.limit is not None and self.place >= self.limit: raise ConnectionError('gone')
        piece = self.data[self.place:self.place + min(size, self.generator.randrange(1, 3000))]
        self.place += len(piece)
        return piece


@pytest.mark.parametrize('format', ['tar.gz', 'tar.zst', 'tar'])
def test_unpack_while_it_arrives(format, signed, keys, tmp_path):
    archive, dest = pack(signed, tmp_path / 'outputs', format=format), tmp_path / 'dest'
    expected = {'sha256': archive.sha256.upper()}
    for limit in (0, 100, archive.bytes // 2, archive.bytes - 1):
        with pytest.raises(ConnectionError): unpack_from(Trickle(archive.path, limit), archive.path.name, dest, expected)
        assert visible(dest) == []
    refused(CheckError, 'another sha256', unpack_from, Trickle(archive.path), archive.path.name, dest, {'sha256': '0' * 64})
    refused(CheckError, "holds 'toy-ct2-int8', not 'other'", unpack_from, Trickle(archive.path), archive.path.name, dest, {}, name='other')
    refused(CheckError, 'another one than was published', unpack_from, Trickle(archive.path), archive.path.name, dest, {}, manifest_sha256='0' * 64)
    assert visible(dest) == []
    found = unpack_from(Trickle(archive.path), archive.path.name, dest, expected, keys / 'ours.pub', name=NAME, manifest_sha256=read_manifest(signed).sha256)
    assert (found.path, found.manifest, found.signed, found.reused, found.read) == (dest / NAME, read_manifest(signed), True, False, archive.bytes)
    assert contents(found.path) == contents(signed) and found.signature.key in str(found)
    again = unpack_from(Trickle(archive.path), archive.path.name, dest, expected)
    assert (again.reused, again.read, again.signed, again.signature) == (True, archive.bytes, True, None)


def test_what_is_there_is_not_read_again(model, keys, tmp_path):
    "Little more than the first piece is read, whatever the format; and the signature must be the archive's."
    (model / 'model.bin').write_bytes(random.Random(2).randbytes(12 << 20))
    seal(model)
    plain = pack(model, tmp_path / 'plain', format='tar.gz')
    sign(model, keys / 'ours.key')
    dest = tmp_path / 'dest'
    for format in ('tar.gz', 'tar.zst', 'tar'):
        archive = pack(model, tmp_path / 'signed', format=format)
        def restore(made, key=None):
            with open(made.path, 'rb') as file: return unpack_from(file, made.path.name, dest, {}, key, to_the_end=False)
        assert not restore(plain).signed and read_signature(dest / NAME) is None
        assert not restore(archive).reused # its signature was not there
        again = restore(archive, keys / 'ours.pub')
        assert again.reused and again.read < 1_100_000 and again.signature.files == 4
        assert restore(plain).reused and read_signature(dest / NAME) == read_signature(model) # an unsigned archive takes no good signature away
        (dest / NAME / SIGNATURE_NAME).write_bytes(b'{}')
        assert not restore(plain).reused and read_signature(dest / NAME) is None
        restore(archive)
        with open(dest / NAME / 'model.bin', 'r+b') as file: file.write(b'?')
        assert not restore(archive).reused and contents(dest / NAME) == contents(model)
        shutil.rmtree(dest)


# The command

def test_command(model, keys, tmp_path, whisper_nb):
    done = whisper_nb('sign', model, '--key', keys / 'locked.key')
    assert done.returncode == 2 and KEY_PASSWORD in done.stderr
    done = whisper_nb('sign', model, '--key', keys / 'locked.key', '--json', **{KEY_PASSWORD: 'open sesame'})
    assert done.returncode == 0 and json.loads(done.stdout)['files'] == 4 and 'sesame' not in done.stdout + done.stderr
    pack(model)
    done = whisper_nb('unpack', f'outputs/{NAME}.tar.gz', 'dest', '--public-key', keys / 'locked.pub')
    assert (done.returncode, done.stdout.strip()) == (0, f'dest/{NAME}')
    done = whisper_nb('unpack', f'outputs/{NAME}.tar.gz', 'other', '--public-key', keys / 'ours.pub')
    assert done.returncode == 1 and 'was not signed with the key' in done.stderr and visible(tmp_path / 'other') == []
    done = whisper_nb('verify', model, '--public-key', keys / 'locked.key')
    assert done.returncode == 2 and 'is a private key' in done.stderr
