"""Tiny random Whisper checkpoints of every shape people bring, made on the fly in a fraction of a second."""
import json
from functools import cache
from pathlib import Path

from whisper_nb.files import MANIFEST_NAME, build_manifest
from whisper_nb.layout import TIMESTAMPS

LANGUAGES = ('en', 'de', 'fr')
MERGES = [('Ġ', 't'), ('h', 'e'), ('Ġt', 'he')]
SENTENCE = ' this tiny test talks'  # What a checkpoint can be made to say; in a reduced vocabulary a space is a token only before a t


def _alphabet():
    "The 256 letters of byte-level BPE."
    from tokenizers import pre_tokenizers
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def token_lists(multilingual=True, timestamps=True, languages=LANGUAGES, no_speech='<|nospeech|>'):
    "Text tokens, and the special tokens that follow them, in Whisper's order."
    text = _alphabet() + [''.join(pair) for pair in MERGES] + [''] * multilingual  # the empty token marks a multilingual model
    special = ['<|endoftext|>', '<|startoftranscript|>', *(f'<|{name}|>' for name in languages), '<|translate|>', '<|transcribe|>',
        '<|startoflm|>', '<|startofprev|>', no_speech, '<|notimestamps|>']
    return text, special + list(TIMESTAMPS if timestamps else ())


@cache
def published_tokens(vocabulary):
    "OpenAI's own 51864, 51865 or 51866 tokens, in the same two lists, and what they are merged from."
    import tempfile
    from whisper_nb.vocabulary import write_tokenizer as write_published
    with tempfile.TemporaryDirectory() as folder:
        write_published(Path(folder), vocabulary)
        text, special = (sorted(found, key=found.get) for found in (read(Path(folder)/f'{name}.json') for name in ('vocab', 'added_tokens')))
        merges = [tuple(line.split(' ')) for line in (Path(folder)/'merges.txt').read_text(encoding='utf-8').split('\n')[1:] if line]
    return text, special, merges


@cache
def build(text, special, merges):
    "A byte-level tokenizer of these tokens; all three are tuples."
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(text)}, list(merges)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in TIMESTAMPS) for token in special])
    return tokenizer


def write_tokenizer(directory, text, special, kind='json', merges=MERGES):
    "kind: 'json' (tokenizer.json), 'pieces' (vocab.json, merges.txt, added_tokens.json), 'both', or 'decoder' (the pieces, with the added tokens in tokenizer_config.json instead)."
    if kind in ('json', 'both'): build(tuple(text), tuple(special), tuple(merges)).save(str(directory/'tokenizer.json'))
    if kind == 'json': return
    added = {token: len(text) + place for place, token in enumerate(special)}
    dump(directory/'vocab.json', {token: place for place, token in enumerate(text)})
    (directory/'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{one} {other}\n' for one, other in merges), encoding='utf-8')
    if kind != 'decoder': dump(directory/'added_tokens.json', added)
    else:
        dump(directory/'tokenizer_config.json', tokenizer_settings(added))
        dump(directory/'special_tokens_map.json', dict(bos_token=special[0], eos_token=special[0], unk_token=special[0], additional_special_tokens=special[:special.index('<|notimestamps|>') + 1]))


def tokenizer_settings(added):
    "tokenizer_config.json, as transformers 4 writes it."
    about = lambda token: dict(content=token, lstrip=False, normalized=False, rstrip=False, single_word=False, special=token not in TIMESTAMPS)
    return dict(add_prefix_space=False, added_tokens_decoder={str(place): about(token) for token, place in added.items()}, bos_token='<|endoftext|>', eos_token='<|endoftext|>',
        unk_token='<|endoftext|>', clean_up_tokenization_spaces=True, errors='replace', model_max_length=1024, processor_class='WhisperProcessor', tokenizer_class='WhisperTokenizer')


def read(path): return json.loads(Path(path).read_text(encoding='utf-8'))
def dump(path, value): Path(path).write_text(json.dumps(value), encoding='utf-8')


def edit(path, **changed):
    "Change fields of a JSON file; None removes one."
    value = read(path) | changed
    dump(path, {name: each for name, each in value.items() if each is not None})


def write_features(directory, mel_bins, kind='preprocessor'):
    "kind: 'preprocessor' (preprocessor_config.json), 'processor' (as transformers 5 saves it) or None."
    features = dict(feature_extractor_type='WhisperFeatureExtractor', feature_size=mel_bins, sampling_rate=16000, hop_length=160, chunk_length=30, n_fft=400)
    if kind == 'preprocessor': dump(directory/'preprocessor_config.json', features)
    if kind == 'processor': dump(directory/'processor_config.json', dict(processor_class='WhisperProcessor', feature_extractor=features))


def lead(model, path, prompt, timestamps):
    "Make the decoder's positions lead to the tokens of `path`, as stand-ins do; `prompt` positions come before, and the rows of `timestamps` stay unlikely."
    import torch
    positions, rows = model.model.decoder.embed_positions.weight, model.proj_out.weight
    with torch.no_grad():
        torch.nn.init.normal_(rows[path[-1]], std=0.02)  # the row of the token that pads is made of zeros
        said = rows[sorted(set(path))]
        rows[timestamps] -= torch.linalg.pinv(said) @ said.square().sum(1)  # as far from each token said as that token is near to itself
        for place in range(len(positions)): positions[place] = 1000 * rows[path[min(max(0, place - prompt), len(path) - 1)]]
        model.model.decoder.layer_norm.weight[:] = 1250 / len(positions[0])


def make_checkpoint(directory, mel_bins=80, dtype='float16', tied=True, shards=False, tokenizer='json', features='preprocessor', generation=True, vocabulary=None, says='',
        multilingual=True, timestamps=True, encoder_layers=2, decoder_layers=2, width=32, inner=2, heads=2, seed=0, manifest=True, more=(), **token_options):
    "Write a random Whisper in the Transformers format and return its directory; with one of OpenAI's vocabularies when its size is given, with `more` tokens of one's own behind it."
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    from transformers.utils import logging
    logging.disable_progress_bar()
    directory = Path(directory)
    directory.mkdir(parents=True)
    text, special, merges = published_tokens(vocabulary) if vocabulary else (*token_lists(multilingual, timestamps, **token_options), MERGES)
    special = [*special, *more]
    rows = len(text) + len(special) + (0 if timestamps else len(TIMESTAMPS))
    place = {token: number for number, token in enumerate(text + special)}
    config = WhisperConfig(vocab_size=rows, num_mel_bins=mel_bins, d_model=width, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=inner*width, decoder_ffn_dim=inner*width, tie_word_embeddings=tied,
        pad_token_id=place['<|endoftext|>'], bos_token_id=place['<|endoftext|>'], eos_token_id=place['<|endoftext|>'], decoder_start_token_id=place['<|startoftranscript|>'],
        begin_suppress_tokens=None, suppress_tokens=None)
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    if not tied: torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    if says:
        path, first = [*build(tuple(text), tuple(special), tuple(merges)).encode(says).ids, place['<|endoftext|>']], place['<|notimestamps|>'] + 1
        lead(model, path, 3 if '' in text else 1, slice(first, first + len(TIMESTAMPS)))
    model.to(getattr(torch, dtype)).save_pretrained(directory, **(dict(max_shard_size='60KB') if shards else {}))
    (directory/'generation_config.json').unlink()
    if generation: write_generation(directory, place, [[0, 1], [decoder_layers - 1, 0]])
    write_tokenizer(directory, text, special, tokenizer, merges)
    write_features(directory, mel_bins, features)
    (directory/'README.md').write_text('---\nlicense: mit\n---\nA random Whisper for tests.\n')
    if manifest: seal(directory)
    return directory


def write_generation(directory, place, alignment_heads):
    "generation_config.json with heads, languages and tasks, as openai's checkpoints have it."
    languages = {token: number for token, number in place.items() if place['<|startoftranscript|>'] < number < place['<|translate|>']}
    choices = dict(lang_to_id=languages, task_to_id=dict(translate=place['<|translate|>'], transcribe=place['<|transcribe|>'])) if '' in place else {}
    dump(directory/'generation_config.json', dict(alignment_heads=alignment_heads, no_timestamps_token_id=place['<|notimestamps|>'], is_multilingual='' in place,
        suppress_tokens=[1, 2, 7], begin_suppress_tokens=[220], max_length=448, max_initial_timestamp_index=50, return_timestamps=False, **choices,
        decoder_start_token_id=place['<|startoftranscript|>'], eos_token_id=place['<|endoftext|>'], pad_token_id=place['<|endoftext|>'], bos_token_id=place['<|endoftext|>']))


def seal(directory, **source):
    "Write a manifest of what is in the directory now."
    directory = Path(directory)
    (directory/MANIFEST_NAME).unlink(missing_ok=True)
    converted = (directory/'model.bin').exists()
    made = build_manifest(directory, directory.name, 'ctranslate2' if converted else 'transformers', source or dict(kind='local', name=directory.name))
    (directory/MANIFEST_NAME).write_text(made.to_json())
    return made


# -- what other tools make of one ----------------------------------------------------------------------------------

def old_export(directory):
    "As transformers 4 saved a fine-tune: settings of generation in config.json, a tokenizer in pieces, a path of the author's machine."
    numbers, text = read(directory/'added_tokens.json'), read(directory/'vocab.json')
    write_tokenizer(directory, sorted(text, key=text.get), sorted(numbers, key=numbers.get), 'decoder', [line.split(' ') for line in (directory/'merges.txt').read_text(encoding='utf-8').split('\n')[1:] if line])
    dump(directory/'normalizer.json', dict(accessorise='accessorize'))
    config = read(directory/'config.json')
    edit(directory/'config.json', dtype=None, torch_dtype=config['dtype'], _name_or_path='/content/whisper-small-hi', transformers_version='4.26.0.dev0', max_length=448,
        forced_decoder_ids=[[1, numbers['<|en|>']], [2, numbers['<|transcribe|>']], [3, numbers['<|notimestamps|>']]], suppress_tokens=[1, 2, 7], begin_suppress_tokens=[220, numbers['<|endoftext|>']])
    edit(directory/'preprocessor_config.json', nb_max_frames=3000, n_samples=480000, padding_side='right', padding_value=0.0, return_attention_mask=False, processor_class='WhisperProcessor')
    return directory


def published_export(directory):
    "As OpenAI's checkpoints are at the Hub: everything twice, old names of settings included."
    numbers, text = read(directory/'added_tokens.json'), read(directory/'vocab.json')
    old_export(directory)
    dump(directory/'added_tokens.json', numbers)
    edit(directory/'generation_config.json', forced_decoder_ids=[[1, None], [2, numbers['<|transcribe|>']]], max_initial_timestamp_index=50, return_timestamps=False, prev_sot_token_id=numbers['<|startofprev|>'])
    return directory


def resave(directory):
    "Load it with transformers and save it again."
    import shutil
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    model, processor = WhisperForConditionalGeneration.from_pretrained(directory), WhisperProcessor.from_pretrained(directory)
    shutil.rmtree(directory)
    for each in (model, processor): each.save_pretrained(directory)
    return directory


def pickle_weights(directory, shards=1, old=False):
    "pytorch_model.bin in the place of model.safetensors, the tied output layer included, as torch.save(model.state_dict()) writes it; `old`: as before torch 1.6."
    import torch
    from safetensors.torch import load_file
    weights = load_file(directory/'model.safetensors')
    (directory/'model.safetensors').unlink()
    weights.setdefault('proj_out.weight', weights['model.decoder.embed_tokens.weight'])
    if shards == 1:
        torch.save(weights, directory/'pytorch_model.bin', _use_new_zipfile_serialization=not old)
        return directory
    names = [f'pytorch_model-{place:05}-of-{shards:05}.bin' for place in range(1, shards + 1)]
    parts = {file: sorted(weights)[place::shards] for place, file in enumerate(names)}
    for file, part in parts.items(): torch.save({name: weights[name] for name in part}, directory/file)
    dump(directory/'pytorch_model.bin.index.json', dict(metadata=dict(total_size=sum(each.nbytes for each in weights.values())), weight_map={name: file for file, part in parts.items() for name in part}))
    return directory


class Trap:
    "Pickled, it writes a file when it is loaded."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')


def set_trap(directory):
    "Weights that run code when they are loaded without care: `sprung` beside the directory says whether they did."
    import torch
    pickle_weights(directory)
    torch.save(torch.load(directory/'pytorch_model.bin', weights_only=True) | dict(trap=Trap(directory.parent/'sprung')), directory/'pytorch_model.bin')
    return directory


def to_ctranslate2(directory, quantization='float16', files=('tokenizer.json', 'preprocessor_config.json')):
    "What CTranslate2's own converter makes of it, in its place, with `files` copied."
    import shutil
    from ctranslate2.converters import TransformersConverter
    target = directory.with_name(f'{directory.name}.converted')
    TransformersConverter(str(directory), copy_files=list(files), load_as_float16=quantization == 'float16').convert(str(target), quantization=quantization)
    shutil.rmtree(directory)
    return target.rename(directory)
