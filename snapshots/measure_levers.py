"""Measures rows of snapshots/flickr8k_levers.csv: `python snapshots/measure_levers.py DATA OUT LEVER ...`, LEVER one or more of LEVERS, LATER and PARTS, or with ', seed 43' behind it

A lever is one change to four epochs of the decoder's own stage of the recipe flickr8k, at four times its rate and with a dropout of 0.3, on features of whole photographs at 224 pixels that know no words yet.
Captions of a beam of 5 are compared with those of the lever 'as it is', which goes first, of the same seed, by a paired bootstrap.
A later lever goes on from the captioner in OUT/stage1 or OUT/stage2 that measure_recipe.py leaves, on crops, and leaves one of its own; 'as it is, later' and 'self-critical, as it is' go first, and seeds 43 to 45 of the former before the mean of their weights.
A part is ten epochs of the decoder's own stage at the recipe's rate and size, on one view of that many of the training photographs, with the words of all of them; the smaller ones have more epochs.
In the rows stage is 1 for the decoder alone, 2 with the encoder, 3 for self-critical training. Each is scored on the validation split, one thread, seed 42 if it names no other. Features on disk are in OUT and used again.
Word vectors to begin with are read from OUT/vectors.txt, as GloVe has them."""
import sys
from functools import partial
from pathlib import Path

import pandas as pd, torch
from fastai.vision.all import Callback, SchedLin, nn, set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from caption_fastai.captioner import Captioner
from caption_fastai.captions import read_captions
from caption_fastai.data import CaptionDataLoaders
from caption_fastai.decoder import AttentionDecoder, SpatialAttention, State
from caption_fastai.learner import caption_learner, fused_adam
from caption_fastai.metrics import WITHOUT_JAVA, compare, write_scored
from caption_fastai.recipes import Stage, recipe_data
from caption_fastai.text import build_vocab, read_vectors

ROWS = Path(__file__).with_name('flickr8k_levers.csv')


class Tied(SpatialAttention):
    "The score of a word is of the vector by which it is read (Press and Wolf 2017)"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out.weight = self.embedding.weight


class Normed(SpatialAttention):
    "Layer normalisation in the LSTM, of the gates' sum and of the cell (Ba et al. 2016)"
    def __init__(self, *args, n_hid=512, **kwargs):
        super().__init__(*args, n_hid=n_hid, **kwargs)
        self.norm_gates,self.norm_cell = nn.LayerNorm(4*n_hid),nn.LayerNorm(n_hid)
        nn.init.ones_(self.norm_gates.bias.data.chunk(4)[1])   # a cell that remembers at first, as without it

    def _lstm(self, x, c):
        i,f,g,o = self.norm_gates(x).chunk(4, 1)
        c = torch.sigmoid(f)*c + torch.sigmoid(i)*torch.tanh(g)
        return torch.sigmoid(o)*torch.tanh(self.norm_cell(c)), c


class TopDown(AttentionDecoder):
    "An LSTM that reads the word and attends, and one on top of it that reads what was seen and speaks (Anderson et al. 2018); the mean feature is in the first states alone"
    def __init__(self, vocab_sz, nf, *args, n_hid=512, proj_sz=None, **kwargs):
        super().__init__(vocab_sz, nf, *args, n_hid=n_hid, proj_sz=proj_sz, **kwargs)
        del self.cell_z   # the first reads no context
        self.cell_top = nn.Linear(n_hid, 4*n_hid, bias=False)
        self.top_x,self.top_h = nn.Linear(n_hid + (proj_sz or nf), 4*n_hid),nn.Linear(n_hid, 4*n_hid, bias=False)
        nn.init.orthogonal_(self.top_h.weight); nn.init.zeros_(self.top_x.bias)
        nn.init.ones_(self.top_x.bias.data.chunk(4)[1])

    def init_state(self, feats):
        state = super().init_state(feats)
        return State(state.rows*2, state.image)

    def cell(self, x, state, places=None, rows=None):
        top_h,top_c,h,c = state.rows
        h,c = self._lstm(x + self.cell_top(top_h) + self.cell_h(h), c)
        context,alpha = self._look(State((h,), state.image), places, rows)
        top = self._lstm(self.top_x(torch.cat([h, context], 1)) + self.top_h(top_h), top_c)
        return context, alpha, State((*top, h, c), state.image)


class MeanWeights(Callback):
    "The exponential mean of the weights over the batches, which the model has at the end; the validation loss is that of the weights themselves"
    order = 70   # after the best weights are back
    def before_fit(self): self.mean = AveragedModel(self.learn.model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    def after_batch(self):
        if self.training: self.mean.update_parameters(self.learn.model)
    def after_fit(self): self.learn.model.load_state_dict(self.mean.module.state_dict())


def begin_with(vectors, vocab, emb_sz=300):
    "Vectors of the words that file `vectors` has, made longer by random numbers"
    known = read_vectors(vectors, vocab.stoi)
    return {w: torch.cat([v, torch.empty(emb_sz - len(v)).uniform_(-0.1, 0.1)]) for w,v in known.items()}


# what it changes of the DataLoaders, of the learner and of the stage
LEVERS = {
    'as it is': ({}, {}),
    "Adam's eps of 1e-8, not 1e-5": ({}, dict(opt_func=partial(fused_adam, eps=1e-8))),
    'scheduled teacher forcing, from 1 to 0.75': ({}, dict(pr_force=SchedLin(1, 0.75))),
    'word vectors tied to the scores': ({}, dict(system=Tied)),
    'layer normalisation in the LSTM': ({}, dict(system=Normed)),
    'four views of each photograph, cropped and mirrored but for the first': (dict(aug=True), {}),
    'words seen 3 times or more, not 5': (dict(min_freq=3), {}),
    'words seen 10 times or more, not 5': (dict(min_freq=10), {}),
    'no attention penalty': ({}, dict(lambda_attn=0.)),
    'dropout of 0.5, not 0.3': ({}, dict(p=0.5)),
    'no label smoothing': ({}, dict(label_smoothing=0.)),
    'word vectors of 512, not 300': ({}, dict(emb_sz=512)),
    'a state of 1,024, not 512': ({}, dict(n_hid=1024)),
    'a constant rate of 1e-3, no cycle': ({}, {}, dict(lr=1e-3, one_cycle=False)),
    'Adam without weight decay, not AdamW': ({}, dict(opt_func='adam', wd=0.)),
    'features as they are, no layer of 512': ({}, dict(proj_sz=None)),
    '64 photographs a batch, not 16': ({}, {}, dict(bs=64)),
    'the mean of the weights, with a decay of 0.998': ({}, dict(cbs=MeanWeights)),
    'word vectors that begin with others': ({}, {}),
    'two LSTMs, top-down': ({}, dict(system=TopDown)),
    'the LSTM of show_attend_tell, with deep output': ({}, dict(system='show_attend_tell', deep_output=True)),
    'the encoder learns words first': ({}, {}),
}
WITH_ENCODER,SEEDS = [Stage(3, slice(5e-5, 6e-4), freeze=1, bs=32)],(43, 44, 45)
# what follows: after which stage of the recipe, the stages, and perhaps what it changes of the DataLoaders; the first after each is what others are compared with
LATER = {
    'as it is, later': (1, WITH_ENCODER),
    'the mean of the weights of these three': (1, []),   # the first with each of SEEDS
    'one rate for encoder and decoder, 3e-4': (1, [Stage(3, 3e-4, freeze=1, bs=32)]),
    'layer by layer: the decoder, then late layers too, then all': (1, [Stage(1, 6e-4, freeze=True, bs=32), Stage(1, slice(5e-5, 6e-4), freeze=1), Stage(1, slice(5e-5, 6e-4))]),
    'all of the encoder': (1, [Stage(3, slice(5e-5, 6e-4), bs=32)]),
    'whole photographs, no crops': (1, WITH_ENCODER, dict(aug=None, aug_scale=1.)),
    'self-critical, as it is': (2, [Stage(3, 5e-5, freeze=True, bs=32, self_critical=True)]),
    "self-critical, the encoder's later half too": (2, [Stage(3, slice(5e-6, 5e-5), freeze=1, bs=32, self_critical=True)]),
    'self-critical, six epochs at 1e-4': (2, [Stage(6, 1e-4, freeze=True, bs=32, self_critical=True)]),
}
PARTS = {'1/8': (8, 24), '1/4': (4, 16), '1/2': (2, 12), '1/1': (1, 10)}   # each so many pictures, and epochs


def _of(lever):
    "The lever alone, and the seed"
    name,_,seed = lever.partition(', seed ')
    return name,int(seed or 42)


def _path(lever): return ''.join(c if c.isalnum() else '_' for c in lever)


def _base(lever):
    "What the lever is compared with: the first of its kind, of the same seed unless seeds are compared"
    name,seed = _of(lever)
    first = next(k for k,v in LATER.items() if v[0] == LATER[name][0]) if name in LATER else 'as it is'
    return first if name == first or seed == 42 else f'{first}, seed {seed}'


def learner(data, out, lever):
    "The learner of a lever or part, its stages and what the row says of it"
    path,(name,seed) = Path(out)/_path(lever),_of(lever)
    if name in LATER:
        after,stages,*more = LATER[name]
        dls = CaptionDataLoaders.from_flickr8k(data, seed=seed, num_workers=1, **{**recipe_data('flickr8k'), **dict(*more)})
        return caption_learner(dls, Captioner.load(Path(out)/f'stage{after}', 'cpu'), recipe='flickr8k', path=path), stages, f'after stage {after} of the recipe flickr8k: {lever}'
    if name in PARTS:
        every,epochs = PARTS[name]
        data_args,args,stage = dict(size=256),{},Stage(epochs, 1e-3, freeze=True, bs=16)
        what = f'the decoder on a frozen encoder, one view, on {lever} of the training photographs'
    else:
        every,epochs = 1,4
        more,args,*of_stage = LEVERS[name]
        stage = Stage(**{**dict(epochs=epochs, lr=4e-3, freeze=True, bs=16), **dict(*of_stage)})
        data_args,args = dict(size=224, **more),{'p': 0.3, **args}
        what = f'spatial_attention, proj_sz=512, rate 4e-3, dropout 0.3: {lever}'
    table = read_captions(data)
    train = table.image[table.split == 'train'].unique()
    if every > 1: data_args['vocab'] = build_vocab(table.caption[table.split == 'train'], recipe_data('flickr8k').get('min_freq', 5))   # of all of them
    table = table[(table.split != 'train') | table.image.isin(train[::every])].reset_index(drop=True)
    dls = CaptionDataLoaders.from_captions(table, seed=seed, num_workers=0, **{**recipe_data('flickr8k'), 'aug': None, 'aug_scale': 1., **data_args})
    if name == 'word vectors that begin with others': args['word_vectors'] = begin_with(Path(out)/'vectors.txt', dls.vocab)
    learn = caption_learner(dls, recipe='flickr8k', weights='IMAGENET1K_V1', path=path, **args)
    views = 4 if data_args.get('aug') else 1
    features = f'features_{data_args["size"]}_of_{len(learn.dls.train_ds)}_{views}'
    if name == 'the encoder learns words first':   # on random crops
        learn.dls = CaptionDataLoaders.from_captions(table, seed=seed, num_workers=1, **recipe_data('flickr8k'))
        with learn.no_bar(): learn.fit_stages([Stage(5, slice(4.5e-5, 2e-3), freeze=1, bs=32, bag_of_words=True)])
        learn.dls,features = dls,f'features_of_{path.name}'
    learn.cache_features(Path(out)/features, views=views)
    return learn,[stage],what


def mean_of(folders):
    "The mean of the weights of captioners (Wortsman et al. 2022), which have begun with the same"
    models = [Captioner.load(f, 'cpu').model for f in folders]
    mean = AveragedModel(models[0], use_buffers=True)
    for model in models: mean.update_parameters(model)
    return mean.module.state_dict()


def difference(a, b):
    "What has changed from the captions of file `a` to those of `b`, with 95% intervals"
    t = compare(a, b)
    return ', '.join(f'{n} {t.difference[k]:+.1f} ({t.low[k]:+.1f} to {t.high[k]:+.1f})' for n,k in (('BLEU-4', 'bleu4'), ('CIDEr', 'cider')))


def main(data, out, *levers):
    torch.set_num_threads(1)
    for lever in levers:
        name,seed = _of(lever)
        set_seed(seed)
        learn,stages,what = learner(data, out, lever)
        if stages:
            with learn.no_bar(): learn.fit_stages(stages)
        else: learn.model.load_state_dict(mean_of(learn.path.with_name(_path(f'as it is, later, seed {k}'))/'captioner' for k in SEEDS))
        learn.captioner().save(learn.path/'captioner')
        s = {k: learn.evaluate(beam_sz=k, length_penalty=0.7, measures=WITHOUT_JAVA) for k in (1, 3, 5)}
        refs,said = learn.dls.refs('valid'),Path(out)/f'{learn.path.name}.json'
        base = said.with_name(f'{_path(_base(lever))}.json')
        write_scored(said, learn.hyps, refs)
        (b_low,b_high),(c_low,c_high) = (s[5]['intervals'][k] for k in ('bleu4', 'cider'))
        remark = [f'95% intervals of beam 5 {b_low:.1f} to {b_high:.1f} and {c_low:.1f} to {c_high:.1f}', *([f'against as it is: {difference(base, said)}'] if said != base and name not in PARTS else []),
                  *([f'validation loss {learn.recorder.values[-1][1]:.3f}'] if stages else []), f'{len(learn.dls.train_ds)} photographs, {len(learn.dls.vocab)} tokens']
        row = dict(lever=what, stage=LATER[name][0] + 1 if name in LATER else 1, epochs=sum(s.epochs for s in stages), **{f'beam{k}': round(s[k]['bleu4'], 2) for k in s}, cider_beam5=round(s[5]['cider'], 1), distinct_beam5=round(s[5]['distinct'], 3),
                   decoder_params=sum(p.numel() for p in learn.model.decoder.parameters()), remark='; '.join(remark))
        pd.DataFrame([row]).to_csv(ROWS, mode='a', header=not ROWS.exists(), index=False)


if __name__ == '__main__': main(*sys.argv[1:])
