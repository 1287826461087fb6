"""Corruption: bits flipped, files cut short, extended and swapped, in all that a model is made of and travels in.

Each change is made to a copy in place, somebody looks (`verify`, `unpack` with `check_archive`, `restore`), and the right bytes are put back. What came of it:

refused    an error of ours, or a check of `verify` that fails; what was under a final name before is there unchanged, and nothing else
recovered  `restore` or `unpack` brought the right model, byte for byte, although what was changed was in its way: a model that is there already, or a record in a store
harmless   the model is byte for byte the right one, and this was looked at; or, in the last case, nobody said that it is. What that can be:
           - an archive without checksums: bits that no reader looks at (tar's check sum itself, zeros at the end), and the model that came out is right; or words of its unsigned manifest (see below), and every file that came out is right;
           - an archive in a store, when exactly its model is there already: every file of that is compared, and the archive is not read to its end;
           - a checksum file or a record: other letters for the same digest, a missing line end, the time of publication, the MD5 where the SHA-256 decides;
           - an unsigned manifest: its words about the model (its name, its source, what made it, the white space at its end) may be others. What it says of each file is the same,
             and `unpack` notices and puts the right text back. The archive's checksum, the record in a store and a signature cover the words too: there, every bit is found;
           - model.sig, checked with the key: other spellings of the same signature (a name that nobody reads); the key proves the same list of files;
           - no manifest at all: `verify` says so (integrity cannot be shown). There it is promised only that it ends soon and in our own words.
lost       anything else: changed bytes that `verify` calls right, another model under the final name, the old one gone, a traceback, an error without advice, more than `LIMIT` seconds
"""
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from campaign import Campaign
from test_pack import NAME, contents, make_model, visible

from whisper_nb.archive import check_archive
from whisper_nb.convert import convert
from whisper_nb.errors import CheckError, WhisperNbError
from whisper_nb.files import MANIFEST_NAME, SIGNATURE_NAME, parse_manifest, read_manifest
from whisper_nb.formats import read_model_bin, read_safetensors
from whisper_nb.pack import pack
from whisper_nb.prepare import prepare
from whisper_nb.restore import LATEST_NAME, PREFIX, RECORD_NAME, Publication, parse_publication, restore
from whisper_nb.signing import sign, signed_files
from whisper_nb.stores import open_store
from whisper_nb.unpack import unpack
from whisper_nb.verify import verify

SIZES = dict(short=(640, 4), full=(12_600, 20))  # changes, and how many more of them through the command
LIMIT = 20  # seconds one look may take; it takes some hundredths
MEMORY = 2_000_000_000  # bytes the process with one half of the campaign may take: more than that, and some change made a reader believe a number
COMMAND = Path(sys.executable).with_name('whisper-nb')


# -- What is changed ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Subject:
    "A file that is changed, and who has to find it."
    name: str  # As it is counted
    path: Path  # The file
    judge: Callable  # Takes a random generator; an outcome, and why
    strangers: tuple = ()  # What files of other models hold under this name
    partners: tuple = ()  # Files it may be exchanged with
    spans: tuple = ()  # (first, end) of the parts in which bits are flipped and blocks exchanged; none: the whole file
    share: float = 1  # Of all changes
    command: tuple = ()  # Words of the `whisper-nb` command that has to refuse every change; none: not every change need be refused


def one_bit(rng, subject, data):
    place, bit = somewhere(rng, subject, data), rng.randrange(8)
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return {subject.path: bytes(changed)}, f'bit {bit} of byte {place}'


def cut_short(rng, subject, data):
    left = rng.choice((len(data) - 1, max(0, len(data) - 512), rng.randrange(len(data)), 0))
    return {subject.path: data[:left]}, f'cut to {left} of {len(data)} bytes'


def extended(rng, subject, data):
    more, how = rng.choice(((rng.randbytes(1), 'a byte'), (bytes(rng.choice((1, 512, 10_240))), 'zeros'), (data, 'itself')))
    return {subject.path: data + more}, f'{how} added ({len(more)} bytes)'


def swapped(rng, subject, data):
    other = rng.choice([None, *subject.strangers, *subject.partners])
    if other is None: return blocks_exchanged(rng, subject, data)
    if isinstance(other, bytes): return {subject.path: other}, "another model's file of this name"
    return {subject.path: other.read_bytes(), other: data}, f'exchanged with {other.name}'


def blocks_exchanged(rng, subject, data):
    size = rng.choice([each for each in (1, 16, 512) if 2*each <= len(data)])
    one, other = min(somewhere(rng, subject, data), len(data) - size), rng.randrange(len(data) - size + 1)
    changed = bytearray(data)
    changed[one:one + size], changed[other:other + size] = data[other:other + size], data[one:one + size]
    return {subject.path: bytes(changed)}, f'blocks of {size} at {one} and {other} exchanged'


FAULTS = {'one bit flipped': (one_bit, 6), 'cut short': (cut_short, 1.5), 'extended': (extended, 1.5), 'swapped': (swapped, 2)}  # What is done, and how often


def somewhere(rng, subject, data):
    spans = subject.spans or ((0, len(data)),)
    return rng.randrange(*rng.choices(spans, [end - first for first, end in spans])[0])


def draw(subject, seed):
    "The change that belongs to a seed: which fault, in words, and path → bytes; never no change at all."
    rng, data = random.Random(seed), subject.path.read_bytes()
    while True:
        fault = rng.choices(list(FAULTS), [often for _, often in FAULTS.values()])[0]
        files, how = FAULTS[fault][0](rng, subject, data)
        if files[subject.path] != data: return fault, how, files


@contextmanager
def changed(files):
    "These files hold this, for a while."
    right = {path: path.read_bytes() for path in files}
    try:
        for path, data in files.items(): path.write_bytes(data)
        yield
    finally:
        for path, data in right.items(): path.write_bytes(data)


# -- Who has to find it ------------------------------------------------------------------------------------------------

class Overdue(BaseException):
    "It took too long."


@contextmanager
def in_time():
    "No look may take longer than the limit."
    def ring(*_): raise Overdue(f'not done after {LIMIT} s')
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    start = time.monotonic()
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if time.monotonic() - start > LIMIT: raise Overdue(f'done only after {time.monotonic() - start:.0f} s')


def two_lines(*lines): return all(line.strip() and line.isprintable() for line in lines)


def one_attack(subject, seed):
    "One change, and what came of it."
    fault, how, files = draw(subject, seed)
    try:
        with changed(files), in_time(): outcome, why = subject.judge(random.Random(f'{seed} judge'))
    except KeyboardInterrupt: raise
    except BaseException as error: outcome, why = 'lost', f'{type(error).__name__}: {error}'  # panics of the tokenizers library are no Exceptions
    return fault, outcome, f'{how}: {outcome}: {why}'[:400] + f' (seed {seed!r})' * (outcome == 'lost')


def by_verify(model, proof=None, key=None):
    "`verify` must find it, or `proof` shows that it does no harm."
    def judge(rng):
        found = verify(model, public_key=key)
        str(found), found.to_json(), found._repr_markdown_()
        for check in found.checks:
            if 'could not be checked' in check.detail: return 'lost', f'it stumbles: {check}'
        for check in found.failures:
            if not two_lines(check.detail, check.fix): return 'lost', f'no two lines: {check!r}'
        if found.failures: return 'refused', f'{found.failures[0].name}: {found.failures[0].detail}'
        return proof(found) if proof else ('lost', 'verify calls it right')
    return judge


def by_all(*judges):
    "Several look: one that loses is enough to have lost, one that refuses is enough to have found it."
    def judge(rng):
        found = [each(rng) for each in judges]
        return next(pair for outcome in ('lost', 'refused', 'recovered', 'harmless') for pair in found if pair[0] == outcome)
    return judge


def refusal(error):
    "What an error of ours is worth."
    if error.exit_code != 1 or not two_lines(error.what, error.advice): return 'lost', f'{type(error).__name__}, exit code {error.exit_code}: {error.what!r} {error.advice!r}'
    return 'refused', error.what


def says_the_same(now, then): return (now.files, now.format, now.quantization) == (then.files, then.format, then.quantization) # of every file; the words about the model may be others


def by_checking(archive, strict=False):
    "`check_archive` must find it; or, where it need not, nothing in the archive is harmed."
    right = check_archive(archive).manifest
    def judge(rng):
        try: found = check_archive(archive)
        except WhisperNbError as error: return refusal(error)
        return ('harmless', 'every file in it is right') if says_the_same(found.manifest, right) and not strict else ('lost', 'check_archive calls it right')
    return judge


def only_words_differ(found, right):
    "Is every file the right one, and the manifest, parsed, the same but for what it says about the model as a whole?"
    if found.keys() != right.keys() or any(found[name] != right[name] for name in right if name != MANIFEST_NAME): return False
    return says_the_same(parse_manifest(found[MANIFEST_NAME]), parse_manifest(right[MANIFEST_NAME]))


def by_bringing(job, dest, versions, settled=None, words=False):
    """`job` must refuse and leave alone what is at `dest`, or bring the right model.
    settled: takes what the job returned and what was there before; the outcome when the right model came; none: then it is lost, because there are checksums that were not looked at.
    words: nothing covers what the manifest says about the model as a whole."""
    right, old = (contents(versions/each/NAME) for each in ('right', 'old'))
    def judge(rng):
        before = rng.choice(('old', 'old', 'right', None))
        shutil.rmtree(dest, ignore_errors=True)
        if before: shutil.copytree(versions/before/NAME, dest/NAME)
        try: made, error = job(dest, rng), None
        except WhisperNbError as found: made, error = None, found
        expected = right if error is None else {'old': old, 'right': right, None: {}}[before]
        if words and error is None and contents(dest/NAME) != right and only_words_differ(contents(dest/NAME), right): return 'harmless', 'words of the manifest are others, every file is the right one'
        if contents(dest/NAME) != expected: return 'lost', f'what is there now is not what should be ({before} before; {error or "no error"})'
        if visible(dest) != [NAME]*bool(expected) or contents(dest/'.staging'): return 'lost', f'something was left behind: {sorted(contents(dest))}'
        if error: return refusal(error)
        return settled(made, before) if settled else ('lost', 'nobody compared it with its checksum')
    return judge


# -- The models, archives and stores that are attacked -----------------------------------------------------------------

def structure(path, tensors):
    "Where a weights file holds something else than numbers."
    spans, place = [], 0
    for tensor in sorted((each for each in tensors.values() if each.shape), key=lambda each: each.start):
        if tensor.start > place: spans.append((place, tensor.start))
        place = tensor.start + tensor.bytes
    return tuple(spans + [(place, path.stat().st_size)] * (place < path.stat().st_size))


def spans_of(path):
    "The same for every file with weights; () for others."
    if path.name == 'model.safetensors': return structure(path, read_safetensors(path).tensors)
    if path.name == 'model.bin': return structure(path, read_model_bin(path).tensors)
    if path.name != 'model.pt': return ()
    with zipfile.ZipFile(path) as archive:
        numbers = min(entry.header_offset for entry in archive.infolist() if '/data/' in entry.filename)
        return (0, numbers), (archive.start_dir, path.stat().st_size)


def strangers(path, folders):
    "What other models hold under this name: those of the same checkpoint in another shape, and one that was made up."
    data = path.read_bytes()
    others = [folder/path.name for folder in folders if folder != path.parent and (folder/path.name).is_file()]
    if path.suffix != '.json': made = data[:-1000] + data[-1000:][::-1]
    elif path.name in ('tokenizer.json', 'vocabulary.json'): made = data.replace(b'one"', b'?"').replace(b'two"', b'one"').replace(b'?"', b'two"')
    else: made = data.replace(b' 80', b' 128')
    return tuple(sorted({each for each in (made, *(other.read_bytes() for other in others)) if each != data}))


MODELS = {  # Directory of the model → the files that are changed
    'demo': ('model.safetensors', 'tokenizer.json', 'config.json', 'generation_config.json', 'preprocessor_config.json'),
    'demo-ct2-float16': ('model.bin', 'vocabulary.json', 'tokenizer.json', 'config.json', 'preprocessor_config.json'),
    'demo-openai-float16': ('model.pt', 'tokenizer.json', 'generation_config.json', 'preprocessor_config.json')}
TITLES = {'demo': 'Transformers', 'demo-ct2-float16': 'CTranslate2', 'demo-openai-float16': 'OpenAI'}


def make_models(work):
    "The demo in three formats, with archives; once more without manifests; and one that is signed, with its key."
    prepare('demo', quantization='float16,int8', skip_fidelity=True, skip_compress=True, skip_test=True, models_dir=str(work/'models'), outputs_dir=str(work/'outputs'))
    convert(work/'models'/'demo', 'float16', format='openai')
    for name in MODELS:
        pack(work/'models'/name, work/'outputs', format='tar')
        shutil.copytree(work/'models'/name, work/'bare'/name, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    shutil.copytree(work/'models'/'demo-ct2-float16', work/'signed'/'demo-ct2-float16')
    write_key(work/'ours')
    sign(work/'signed'/'demo-ct2-float16', work/'ours.key')


def write_key(path):
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    key = ec.generate_private_key(ec.SECP256R1())
    path.with_suffix('.key').write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix('.pub').write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def files_of(model, title, judge, folders, share=1, command=()):
    "The files of a model, each a subject; weights are two: what describes them, and the numbers."
    for name in MODELS[model.name]:
        path = model/name
        about = dict(path=path, judge=judge, strangers=strangers(path, folders), partners=tuple(model/other for other in MODELS[model.name] if other != name), command=command)
        if spans := spans_of(path):
            yield Subject(f'{title}: {name}, description', spans=spans, share=share, **about)
            yield Subject(f'{title}: {name}, numbers', share=share/2, **about)
        else: yield Subject(f'{title}: {name}', share=share, **about)


def only_words(model, archive):
    "Proof that a changed manifest says the same of every file, and that unpacking again brings its own text back."
    right, whole = read_manifest(model), contents(model)
    def proof(found):
        now = read_manifest(model)
        if not says_the_same(now, right): return 'lost', 'verify calls a manifest right that says something else of the files'
        unpack(archive, model.parent)
        if contents(model) != whole: return 'lost', 'the manifest was changed, and unpack did not notice'
        return 'harmless', 'the same is said of every file; unpack put the right text back'
    return proof


def same_signature(model):
    "Proof that a changed signature that the key takes is one of the same files."
    right = signed_files((model/SIGNATURE_NAME).read_bytes())
    def proof(found):
        if signed_files((model/SIGNATURE_NAME).read_bytes()) != right: return 'lost', 'verify takes the signature of other files'
        return 'harmless', 'the key proves the same list of files'
    return proof


def stated(found):
    "Proof that `verify` does not claim what it cannot know."
    if ('integrity', None, 'no manifest: integrity cannot be shown') in [(check.name, check.ok, check.detail) for check in found.checks]: return 'harmless', 'verify says that integrity cannot be shown'
    return 'lost', 'verify calls it right'


def models(work):
    "Everything in a model's directory."
    folders = [work/'models'/name for name in (*MODELS, 'demo-ct2-int8')]
    for model in folders[:len(MODELS)]:
        title, command = TITLES[model.name], ('verify', model)
        yield from files_of(model, title, by_verify(model), folders, command=command)
        manifest = model/MANIFEST_NAME
        yield Subject(f'{title}: {MANIFEST_NAME}', manifest, by_verify(model, only_words(model, work/'outputs'/f'{model.name}.tar')), strangers(manifest, folders), (model/'preprocessor_config.json',), share=2)
        bare = work/'bare'/model.name
        yield from files_of(bare, f'no manifest: {title}', by_verify(bare, stated), folders)
    signed, key = work/'signed'/'demo-ct2-float16', work/'ours.pub'
    command = ('verify', signed, '--public-key', key)
    yield Subject(f'signed: {MANIFEST_NAME}', signed/MANIFEST_NAME, by_verify(signed, key=key), strangers(signed/MANIFEST_NAME, folders), command=command)
    yield Subject(f'signed: {MANIFEST_NAME}, no key', signed/MANIFEST_NAME, by_verify(signed), strangers(signed/MANIFEST_NAME, folders), command=command[:2])
    yield Subject(f'signed: {SIGNATURE_NAME}', signed/SIGNATURE_NAME, by_verify(signed, same_signature(signed), key), partners=(signed/MANIFEST_NAME,), share=2)
    yield Subject('signed: model.bin', signed/'model.bin', by_verify(signed, key=key), share=.5, command=command)


def make_archives(work):
    "Two versions of a toy, and one of another name: archives alone and with checksums, and a store for each format."
    for version, seed, name in (('right', 1, NAME), ('old', 2, NAME), ('other', 3, 'other-ct2-int8')): make_model(work/'toys'/version/name, 12_000, seed)
    make_model(work/'large'/'right'/NAME, 3_000_000, 4)
    shutil.copytree(work/'toys'/'old', work/'large'/'old')
    for format in FORMATS:
        publish_toy(work/'toys'/'right'/NAME, work/'stores'/format, work/'archives', format)
        publish_toy(work/'toys'/'old'/NAME, work/'stores'/'old', work/'stores'/'old packed', format)
        publish_toy(work/'toys'/'other'/'other-ct2-int8', work/'stores'/'other', work/'stores'/'other packed', format)
        (work/'alone').mkdir(exist_ok=True)
        shutil.copy(work/'archives'/f'{NAME}.{format}', work/'alone')
        pack(work/'large'/'right'/NAME, work/'large'/'packed', format=format)


def publish_toy(model, store, outputs, format):
    "As `publish` puts it there, without its proofs."
    made = pack(model, outputs, format=format)
    version = made.sha256[:PREFIX]
    record = Publication(model.name, f'{version}/{made.path.name}', made.bytes, made.sha256, read_manifest(model).sha256, '2026-11-21T09:30:00Z')
    kept = open_store(str(store))
    for ending in ('', '.md5', '.sha256'): kept.write(Path(f'{made.path}{ending}'), f'{model.name}/{version}/{made.path.name}{ending}')
    for path in (f'{model.name}/{version}/{RECORD_NAME}', f'{model.name}/{LATEST_NAME}'): kept.write_bytes(record.to_json().encode(), path)


FORMATS = ('tar.gz', 'tar.zst', 'tar')


def brings(archive): return lambda dest, rng: unpack(archive, dest)


def is_right(made, before): return 'harmless', 'the model that came out is right, byte for byte'


def archives(work):
    "Archives that lie somewhere: with their checksums, and alone."
    dest, toys, large = work/'dest', work/'toys', work/'large'
    for format in FORMATS:
        archive, alone, big = (folder/f'{NAME}.{format}' for folder in (work/'archives', work/'alone', large/'packed'))
        other = ((work/'stores'/'old packed'/archive.name).read_bytes(), (work/'stores'/'other packed'/f'other-ct2-int8.{format}').read_bytes())
        beside = [archive.with_name(f'{archive.name}.{algorithm}') for algorithm in ('md5', 'sha256')]
        command = ('unpack', archive, dest)
        yield Subject(f'archive {format}', archive, by_all(by_bringing(brings(archive), dest, toys), by_checking(archive, strict=True)), other, tuple(beside), share=2.5, command=command)
        yield Subject(f'archive {format}, no checksums', alone, by_all(by_bringing(brings(alone), dest, toys, is_right, words=True), by_checking(alone)), share=2.5)
        yield Subject(f'archive {format}, several pieces', big, by_bringing(brings(big), dest, large), other, share=.5)
    for path in beside: # those of the last format: they are the same for all
        other = ((work/'stores'/'old packed'/path.name).read_bytes(),)
        yield Subject(f'checksum {path.suffix}', path, by_all(by_bringing(brings(archive), dest, toys, is_right), by_checking(archive)), other, tuple(each for each in beside if each != path), share=1.5)


def fetches(*urls): return lambda dest, rng: restore(str(rng.choice(urls)), str(dest))


def stores(work):
    "What lies in a store, restored by each kind of URL."
    dest, toys, others = work/'dest', work/'toys', [work/'stores'/'old'/NAME, work/'stores'/'other'/'other-ct2-int8']
    for format in FORMATS:
        place = work/'stores'/format/NAME
        archive = next(place.glob(f'*/{NAME}.{format}'))
        version = archive.parent
        elsewhere = tuple(next(other.glob(f'*/*.{format}')).read_bytes() for other in others)
        def unread(made, before): # exactly this model is there already, so nothing but the beginning is read
            return ('harmless', 'the model was already there, every byte of it') if made.reused and before == 'right' else ('lost', 'nobody compared it with its checksum')
        yield Subject(f'store: archive {format}', archive, by_bringing(fetches(place, version, archive), dest, toys, unread), elsewhere, (version/f'{archive.name}.md5',), share=2.5, command=('restore', place, work/'empty'))
    records = tuple((other/LATEST_NAME).read_bytes() for other in others)
    for path, urls in ((place/LATEST_NAME, (place,)), (version/RECORD_NAME, (version, archive))):
        yield Subject(f'store: {path.name}', path, by_bringing(fetches(*urls), dest, toys, set_aside(path)), records, (version/f'{archive.name}.sha256',), share=2)
    path = version/f'{archive.name}.sha256'
    yield Subject('store: checksum .sha256', path, by_bringing(fetches(version, archive), dest, toys, is_right), tuple(next(other.glob(f'*/*.{format}.sha256')).read_bytes() for other in others), (version/f'{archive.name}.md5',))


def set_aside(path):
    "Did the right model come although the record names another, or does the changed record name the right one?"
    def facts(data): return {name: value for name, value in vars(parse_publication(data)).items() if name != 'published'}
    right = facts(path.read_bytes())
    def settled(made, before):
        try: same = facts(path.read_bytes()) == right
        except CheckError: same = False
        if same or made.reused and before == 'right': return 'harmless', 'the model is right, byte for byte'
        return 'recovered', "the record was set aside: the version's name and the checksum file prove the archive"
    return settled


def in_place(work):
    "A model that is there already, and is not what it was: bringing it again mends it."
    model, archive = work/'place'/NAME, work/'archives'/f'{NAME}.tar.gz'
    unpack(archive, model.parent)
    right, place = contents(model), work/'stores'/'tar.gz'/NAME
    def judge(rng):
        if rng.random() < .5: unpack(archive, model.parent)
        else: restore(str(place), str(model.parent))
        return ('recovered', 'it was noticed and replaced') if contents(model) == right and visible(model.parent) == [NAME] else ('lost', 'it was not noticed, or not mended')
    for name in sorted(right):
        others = tuple((work/'toys'/version/folder/name).read_bytes() for version, folder in (('old', NAME), ('other', 'other-ct2-int8')))
        yield Subject(f'brought again: {name}', model/name, judge, others, (model/'vocabulary.json',) * (name != 'vocabulary.json'), share=.6)


def build(work):
    "Everything that is attacked."
    work.mkdir(parents=True, exist_ok=True)
    make_models(work)
    make_archives(work)
    return [*models(work), *archives(work), *stores(work), *in_place(work)]


# -- The campaign ------------------------------------------------------------------------------------------------------

def attack(campaign, subjects, count, seed):
    "So many changes, shared among the subjects; each subject gets some."
    whole = sum(subject.share for subject in subjects)
    numbers = [max(4, round(count*subject.share/whole)) for subject in subjects]
    with tqdm(total=sum(numbers), desc=f'corruption ({seed})') as bar:
        for subject, number in zip(subjects, numbers):
            for place in range(number):
                campaign.count(subject.name, *one_attack(subject, f'{seed}, {subject.name}, {place}'))
                bar.update()


def told(done, verb):
    "Does the command refuse in two lines, with exit code 1?"
    said = done.stdout + done.stderr
    lines = [line.strip() for line in (done.stdout if verb == 'verify' else done.stderr).splitlines()]
    problem = any(one.startswith('❌') and other.startswith('→ ') for one, other in zip(lines, lines[1:]))
    return done.returncode == 1 and 'Traceback' not in said and problem and (done.stderr == '' if verb == 'verify' else len(lines) == 2 and done.stdout == '')


def by_command(campaign, subjects, count, seed):
    "Some more, through the command."
    rng, verbs = random.Random(seed), ('restore', 'unpack', 'verify')
    for place in range(count):
        subject = rng.choice([subject for subject in subjects if subject.command[:1] == (verbs[place % 3],)])
        fault, how, files = draw(subject, f'{seed}, {subject.name}, command {place}')
        with changed(files): done = subprocess.run([str(word) for word in (COMMAND, *subject.command)], capture_output=True, text=True, timeout=120, env=os.environ | dict(TQDM_DISABLE='1'))
        outcome = 'refused' if told(done, subject.command[0]) else 'lost'
        campaign.count(f'command {subject.command[0]}', fault, outcome, f'{subject.name}, {how}: {outcome}: exit code {done.returncode}, {done.stdout[-300:]!r} {done.stderr[-300:]!r}')


def part(work, count, commands, seed):
    "A part of the campaign, for a process of its own: what it counted."
    campaign, subjects = Campaign('corruption'), build(Path(work))
    attack(campaign, subjects, count, seed)
    by_command(campaign, subjects, commands, seed)
    if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) > MEMORY: campaign.count('the process', 'all', 'lost', f'it took {peak:,} bytes of memory')
    return campaign.rows


def run(campaign, work, size):
    "The campaign; the short form returns what it attacked."
    count, commands = SIZES[size]
    if size == 'short':
        subjects = build(work)
        attack(campaign, subjects, count, size)
        by_command(campaign, subjects, commands, size)
        return subjects
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:
        parts = [pool.submit(part, work/str(place), count//2, commands//2, f'{size} {place}') for place in range(2)]
        for place, each in enumerate(parts):
            try: campaign.add(each.result())
            except BrokenProcessPool: campaign.count('the process', 'all', 'lost', f'part {place} of the campaign died')
