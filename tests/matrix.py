"""The matrix: one checkpoint of every shape people bring, each taken through the real `prepare`. `run_shape` is for the tests and for nbs/explanations/checkpoint_shapes.ipynb."""
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # as in conftest.py; before torch is imported

from whisper_nb.audio import default_clip
from whisper_nb.backends import load
from whisper_nb.errors import Problem, WhisperNbError, explain
from whisper_nb.formats import model_format
from whisper_nb.hub import download
from whisper_nb.mirror import serving
from whisper_nb.models import DEMO_DIR
from whisper_nb.prepare import prepare
from whisper_nb.unpack import unpack

from checkpoints import (SENTENCE, dump, edit, make_checkpoint, old_export, pickle_weights, published_export, read, resave, set_trap, to_ctranslate2)

REPOSITORY = 'someone/whisper-fine-tune'  # What a checkpoint is called at the loopback Hub


@dataclass(frozen=True)
class Shape:
    "A kind of checkpoint, and what has to become of it."
    about: str  # How such a one comes about
    make: dict = field(default_factory=dict)  # Arguments of `make_checkpoint`
    changes: tuple = ()  # Functions that take the directory and make of it what people bring
    filled: str = ''  # What the report says of a part that was missing
    refused: str = ''  # What the clear no says
    allow_pickle: bool = False  # Downloaded with --allow-pickle first
    quantization: str = 'float16'  # Asked of `prepare`
    heard: str = SENTENCE.strip()  # What it says, whatever it listens to

    @property
    def ctranslate2(self) -> bool: return to_ctranslate2 in [getattr(each, 'func', each) for each in self.changes]


def without(*names):
    "A change: these files are not there."
    def remove(directory):
        for name in names: (directory/name).unlink()
        return directory
    return remove


def alone(**files):
    "A change: nothing but these files is there, each with this content."
    def empty(directory):
        shutil.rmtree(directory)
        directory.mkdir()
        for name, content in files.items(): (directory/name.replace('__', '.')).write_text(content)
        return directory
    return empty


def converted(**options):
    "A change: what CTranslate2's converter makes of it."
    def convert(directory): return to_ctranslate2(directory, **options)
    convert.func = to_ctranslate2
    return convert


def beside_others(directory):
    "The same weights for other libraries, and once more in float32."
    for name in ('flax_model.msgpack', 'tf_model.h5', 'pytorch_model.bin', 'model.fp32-00001-of-00002.safetensors'): (directory/name).write_bytes(b'for others')
    dump(directory/'model.safetensors.index.fp32.json', dict(weight_map={}))
    return directory


def rename_tensors(rename, **config):
    "A change: tensors get other names, and those that get none are left out."
    def change(directory):
        from safetensors.torch import load_file, save_file
        save_file({new: tensor for name, tensor in load_file(directory/'model.safetensors').items() if (new := rename(name))}, directory/'model.safetensors', metadata=dict(format='pt'))
        edit(directory/'config.json', **config)
        return directory
    return change


def pad_rows(directory):
    "More rows than tokens: resize_token_embeddings(pad_to_multiple_of=64)."
    import torch
    from safetensors.torch import load_file, save_file
    weights, name = load_file(directory/'model.safetensors'), 'model.decoder.embed_tokens.weight'
    rows = len(weights[name])
    more = torch.zeros(-rows % 64, weights[name].shape[1], dtype=weights[name].dtype)
    save_file(weights | {name: torch.cat([weights[name], more])}, directory/'model.safetensors', metadata=dict(format='pt'))
    edit(directory/'config.json', vocab_size=rows + len(more))
    return directory


def the_file(name):
    "A change: the file itself is given."
    def path(directory): return directory/name
    return path


def vocabulary_as_text(directory):
    "As converters wrote it before CTranslate2 3.20."
    (directory/'vocabulary.txt').write_text(''.join(f'{token}\n' for token in read(directory/'vocabulary.json')), encoding='utf-8')
    (directory/'vocabulary.json').unlink()
    return directory


def trained(directory):
    "A Trainer left its traces."
    dump(directory/'trainer_state.json', dict(epoch=3.0, log_history=[]))
    for name in ('training_args.bin', 'optimizer.pt', 'scheduler.pt', 'rng_state.pth'): (directory/name).write_bytes(b'pickled')
    (directory/'runs').mkdir()
    (directory/'runs'/'events.out').write_bytes(bytes(100))
    return directory


def translates_text(directory):
    "A CTranslate2 model that is no Whisper."
    weights = (directory/'model.bin').read_bytes()
    name, other = (len(each).to_bytes(2, 'little') + each for each in (b'WhisperSpec\0', b'TransformerSpec\0'))
    assert weights.count(name) == 1
    (directory/'model.bin').write_bytes(weights.replace(name, other))
    return directory


def of_the_demo(directory):
    "The demo's own files."
    shutil.rmtree(directory)
    return Path(shutil.copytree(DEMO_DIR, directory))


def bert(directory):
    edit(directory/'config.json', model_type='bert')
    return directory


def one_shard_lost(directory):
    next(iter(sorted(directory.glob('model-*.safetensors')))).unlink()
    return directory


def quantized_elsewhere(directory):
    "Weights in int8 of another tool."
    from safetensors.torch import load_file, save_file
    weights = load_file(directory/'model.safetensors')
    save_file({name: (tensor * 10).round().char() if name.endswith('fc1.weight') else tensor for name, tensor in weights.items()}, directory/'model.safetensors', metadata=dict(format='pt'))
    return directory


ENGLISH, MULTILINGUAL, V3 = (dict(vocabulary=rows) for rows in (51864, 51865, 51866))
GENERATION, FEATURES, TOKENIZER = 'generation_config.json', 'preprocessor_config.json', 'tokenizer.json'

ARCHITECTURES = {
    'multilingual, 80 mel bins': Shape('whisper-tiny to whisper-large-v2 and their fine-tunes', MULTILINGUAL),
    'multilingual, 128 mel bins': Shape('whisper-large-v3 and turbo', V3 | dict(mel_bins=128)),
    'English only': Shape('the .en checkpoints', ENGLISH),
    'reduced vocabulary': Shape('a model for few languages, with its own tokenizer'),
    'reduced, English only': Shape('the same without languages', dict(multilingual=False, languages=('en',), no_speech='<|nocaptions|>')),
    'added tokens': Shape('a fine-tune with new tokens behind the timestamps', dict(more=('<|speaker1|>', '<|speaker2|>'))),
    'the demo': Shape('comes with this project', changes=(of_the_demo,), heard=default_clip().text),
    'distilled': Shape('distil-whisper: fewer decoder layers than encoder layers', dict(encoder_layers=4, decoder_layers=1)),
    'untied': Shape('an output layer of its own', dict(tied=False)),
}
WEIGHTS = {
    'float32': Shape('most fine-tunes', dict(dtype='float32')),
    'bfloat16': Shape('trained in bfloat16', dict(dtype='bfloat16')),
    'float64': Shape('saved by mistake, but it happens', dict(dtype='float64')),
    'to int8': Shape('float32, converted to int8', dict(dtype='float32'), quantization='int8'),
    'shards': Shape('larger than max_shard_size of save_pretrained', dict(shards=True)),
    'shards, untied, float32': Shape('all of these at once', dict(shards=True, tied=False, dtype='float32')),
}
FILES = {
    'published': Shape("as OpenAI's checkpoints are at the Hub", MULTILINGUAL | dict(tokenizer='both'), (published_export, beside_others)),
    'saved by transformers 4': Shape('a fine-tune: tokenizer in pieces, settings in config.json', dict(tokenizer='pieces'), (old_export, trained), 'tokenizer.json built'),
    'saved by transformers 4, first year': Shape('the same before there was a generation_config.json', dict(tokenizer='pieces', generation=False), (old_export,), GENERATION),
    'saved by transformers 5': Shape('save_pretrained of model and processor', V3 | dict(mel_bins=128), (resave,), f'{FEATURES} from processor_config.json'),
    'no preprocessor_config.json': Shape('the processor was not saved', dict(features=None), filled=f'{FEATURES} for 80 mel bins'),
    'no preprocessor_config.json, 128 mel bins': Shape('the same of a large-v3', dict(features=None, mel_bins=128), filled=f'{FEATURES} for 128 mel bins'),
    'no generation_config.json': Shape('only weights and config.json were copied', dict(generation=False), filled=GENERATION),
    'vocab.json and merges.txt': Shape('a slow tokenizer: with added_tokens.json', dict(tokenizer='pieces'), filled='tokenizer.json built'),
    'no added_tokens.json': Shape('newer slow tokenizers: added tokens in tokenizer_config.json', dict(tokenizer='decoder'), filled='tokenizer.json built'),
    'older tokenizer': Shape('of 2022, without tokens for the timestamps', dict(tokenizer='pieces', timestamps=False), filled='tokenizer.json built'),
    'no tokenizer': Shape('model.save_pretrained alone', MULTILINGUAL, (without(TOKENIZER),), f"tokenizer.json of OpenAI's vocabulary"),
    'weights and config.json only': Shape('the two files copied by hand', V3 | dict(mel_bins=128, generation=False, features=None), (without(TOKENIZER),), f"tokenizer.json of OpenAI's vocabulary"),
}
PICKLED = {
    'pickle, allowed': Shape('before safetensors: pytorch_model.bin', changes=(pickle_weights,), allow_pickle=True),
    'pickle in shards, allowed': Shape('the same in several files', dict(dtype='float32'), (lambda directory: pickle_weights(directory, 3),), allow_pickle=True),
    'pickle of before 2020, allowed': Shape('before torch 1.6 wrote zip files', changes=(lambda directory: pickle_weights(directory, old=True),), allow_pickle=True),
}
CONVERTED = {
    'CTranslate2': Shape('ct2-transformers-converter with all copied', MULTILINGUAL, (converted(),)),
    'CTranslate2, 128 mel bins': Shape('the same of a large-v3', V3 | dict(mel_bins=128), (converted(),)),
    'CTranslate2, int8': Shape('quantized when it was converted', MULTILINGUAL, (converted(quantization='int8'),)),
    'CTranslate2, no tokenizer.json': Shape('as the converter leaves it without --copy_files', MULTILINGUAL, (converted(files=[FEATURES]),), TOKENIZER),
    'CTranslate2, no preprocessor_config.json': Shape('early conversions of large-v3', V3 | dict(mel_bins=128), (converted(files=[TOKENIZER]),), f'{FEATURES} for 128 mel bins'),
    'CTranslate2, nothing copied': Shape('both at once, English only', ENGLISH, (converted(files=[]),), TOKENIZER),
    'CTranslate2, vocabulary.txt': Shape('converted before 2023-09', MULTILINGUAL, (converted(), vocabulary_as_text)),
    'CTranslate2, vocabulary.txt, no tokenizer.json': Shape('the first models of faster-whisper', MULTILINGUAL, (converted(files=[]), vocabulary_as_text), TOKENIZER),
    'CTranslate2, no config.json': Shape('a copy that lost it', MULTILINGUAL, (converted(), without('config.json')), 'config.json'),
    'CTranslate2, model.bin only': Shape('the weights alone', MULTILINGUAL, (converted(files=[]), without('config.json', 'vocabulary.json')), TOKENIZER),
}

REFUSED = {
    'pickle': Shape('pytorch_model.bin, not allowed', changes=(pickle_weights,), refused='only as pickle'),
    'malicious pickle': Shape('weights that run code when loaded', changes=(set_trap,), refused='holds more than tensors', allow_pickle=True),
    'adapter': Shape('a PEFT fine-tune that was not merged', changes=(alone(adapter_config__json='{"peft_type": "LORA"}', adapter_model__safetensors=''),), refused='adapter'),
    'GGML': Shape('a model for whisper.cpp', changes=(alone(**{'ggml-base__bin': 'lmgg'}),), refused='GGML'),
    'openai .pt': Shape('what openai-whisper downloads', changes=(alone(tiny__pt=''),), refused='.pt'),
    'openai .pt, the file': Shape('the same, given without its directory', changes=(alone(tiny__pt=''), the_file('tiny.pt')), refused='tiny.pt'),
    'a safetensors file': Shape('the weights, given without their directory', changes=(the_file('model.safetensors'),), refused='model.safetensors'),
    'for classification': Shape('WhisperForAudioClassification: an encoder with another head', changes=(rename_tensors(lambda name: name.removeprefix('model.') if '.encoder.' in name else '', architectures=['WhisperForAudioClassification']),), refused='is missing'),
    'no head': Shape('saved by WhisperModel: other names for all tensors', changes=(rename_tensors(lambda name: name.removeprefix('model.'), architectures=['WhisperModel']),), refused='is missing'),
    'padded rows': Shape('more rows than tokens', changes=(pad_rows,), refused='tokens'),
    'no Whisper': Shape('a BERT', changes=(bert,), refused='model type in its config.json is bert'),
    'empty': Shape('a wrong path', changes=(alone(),), refused='not a Whisper model'),
    'a shard is missing': Shape('an interrupted copy', dict(shards=True), (one_shard_lost,), refused='no complete weights'),
    'no tokenizer, reduced vocabulary': Shape('nothing tells which tokens these are', changes=(without(TOKENIZER),), refused='tokenizer'),
    'quantized elsewhere': Shape('weights in int8 of another tool', changes=(quantized_elsewhere,), refused="another tool's quantization"),
    'CTranslate2, no Whisper': Shape('a model that translates text', MULTILINGUAL, (converted(), translates_text), refused='not a Whisper'),
}
TAKEN = ARCHITECTURES | WEIGHTS | FILES | PICKLED | CONVERTED
SHAPES = TAKEN | REFUSED


@dataclass(frozen=True)
class Row:
    "What became of one."
    shape: str  # Its name in `SHAPES`
    format: str  # Of what was brought
    mel_bins: int
    vocabulary: int|None  # Number of tokens, where it is known
    weights: str  # Type, and in how many files
    files: tuple  # What was brought
    steps: dict = field(default_factory=dict)  # Step → status
    seconds: dict = field(default_factory=dict)  # Step → wall time, s
    heard: dict = field(default_factory=dict)  # Backend → what it said
    again: str = ''  # Status of the download when it was asked for once more
    notes: tuple = ()  # What was filled in or found on the way
    problem: Problem|None = None  # The two lines, when it was refused

    @property
    def ok(self) -> bool: return self.problem is None and set(self.heard.values()) == {SHAPES[self.shape].heard} and 'failed' not in self.steps.values()


def bring(name: str, folder: Path) -> Path:
    "Make a checkpoint of this shape; its directory."
    shape = SHAPES[name]
    directory = make_checkpoint(folder/'brought'/''.join(letter if letter.isalnum() else '-' for letter in name), **dict(says=SENTENCE, width=64, manifest=False) | shape.make)
    for change in shape.changes: directory = change(directory)
    return directory


def described(name: str, directory: Path) -> dict:
    "What the table says of it before it is prepared."
    make = SHAPES[name].make
    dtype = 'int8' if name == 'CTranslate2, int8' else make.get('dtype', 'float16')
    if directory.is_file(): directory = directory.parent
    files = sorted(path.name for path in directory.iterdir() if path.is_file())
    config = read(directory/'config.json') if 'config.json' in files else {}
    tokens = config.get('vocab_size') or make.get('vocabulary')
    count = sum(each.endswith(('.safetensors', '.bin')) for each in files if each != 'training_args.bin')
    return dict(format=model_format(directory) or '', mel_bins=make.get('mel_bins', 80), vocabulary=tokens, weights=f"{dtype}{f', {count} files' * (count > 1)}", files=tuple(files))


def notes(report) -> tuple:
    "What a report says of missing parts, paths aside."
    details = [part for step in report.steps if step.name in ('download', 'convert') for part in step.detail.split('; ')]
    return tuple(part for part in details if 'models/' not in part and not part.startswith(('already in', '--')))


def hear(directory: Path) -> tuple[str, str]:
    "Backend, and what it hears in the clip."
    model = load(directory)
    return model.backend.name, model.transcribe(default_clip().path, language='en').text.strip()


def run_shape(name: str, folder: Path, hub: bool = False, offline: bool = False) -> Row:
    "Take one through the whole job below `folder`, from a directory or a Hub; its archive, unpacked elsewhere, has to speak, and so has the model left in Transformers format (`offline`: tested offline, too)."
    shape, directory = SHAPES[name], bring(name, folder)
    places = dict(models_dir=str(folder/'models'), outputs_dir=str(folder/'outputs'))
    row = dict(shape=name, **described(name, directory))
    with serving({REPOSITORY: directory}) if hub else nullcontext() as endpoint, patch.dict('os.environ', dict(HF_ENDPOINT=endpoint) if hub else {}):
        model = REPOSITORY if hub else str(directory)
        try:
            if shape.allow_pickle: download(model, models_dir=places['models_dir'], allow_pickle=True)
            report = prepare(model, quantization=shape.quantization, **places)
            report.require_ok()
        except WhisperNbError as error:
            told = explain(error)
            return Row(**row, problem=replace(told, what=told.what.replace(f'{folder}/brought', '…'), advice=told.advice.replace(f'{folder}/brought', '…')))
        row |= dict(steps={step.name: step.status for step in report.steps}, seconds={step.name: step.seconds for step in report.steps}, notes=notes(report))
        row['heard'] = dict([hear(unpack(report.results['models'][0]['archive'], folder/'elsewhere'))])
        plain = prepare(model, no_convert=True, skip_compress=True, skip_test=not offline, **places)
        plain.require_ok()
        row['again'] = plain.steps[0].status
        if row['format'] == 'transformers': row['heard'] |= dict([hear(Path(plain.results['models'][0]['model']))])
    return Row(**row)
