"""Show, Attend and Tell as the well-known tutorials write it, to compare with: a copy of the picture for each caption, the features projected
and the vocabulary's scores computed in the loop, a 14x14 grid pooled up, search for one picture at a time. The numbers are the same."""
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torchvision import models, transforms

from caption_fastai.text import Vocab

class TextbookDecoder(nn.Module):
    "With the weights of an `AttentionDecoder`"
    def __init__(self, dec):
        super().__init__()
        n_hid = dec.cell_h.in_features
        self.embedding,self.encoder_att,self.decoder_att,self.full_att = dec.embedding,dec.attention.key,dec.attention.query,dec.attention.score
        self.init_h,self.init_c,self.f_beta,self.fc = dec.init_h,dec.init_c,dec.gate,dec.out
        self.cell = nn.LSTMCell(dec.cell_x.in_features + dec.cell_z.in_features, n_hid)
        with torch.no_grad():
            self.cell.weight_ih.copy_(torch.cat([dec.cell_x.weight, dec.cell_z.weight], 1)); self.cell.weight_hh.copy_(dec.cell_h.weight)
            self.cell.bias_ih.copy_(dec.cell_x.bias); self.cell.bias_hh.zero_()

    def start(self, feats): return torch.tanh(self.init_h(feats.mean(1))),torch.tanh(self.init_c(feats.mean(1)))

    def step(self, emb, feats, h, c):
        "feats (rows,L,D): a copy for each row"
        att = self.full_att(torch.tanh(self.encoder_att(feats) + self.decoder_att(h).unsqueeze(1))).squeeze(2)
        alpha = att.softmax(1)
        context = torch.sigmoid(self.f_beta(h)) * (feats*alpha.unsqueeze(2)).sum(1)
        h,c = self.cell(torch.cat([emb, context], 1), (h, c))
        return self.fc(h),alpha,h,c

    def forward(self, feats, caps, lens):
        "feats (rows,L,D), a copy for each caption; caps (rows,sl); logits and targets of all words, the rows sorted by length"
        lens,order = (lens - 1).sort(descending=True, stable=True)
        feats,caps = feats[order],caps[order]
        embs,(h,c),lens = self.embedding(caps),self.start(feats),lens.tolist()
        preds,alphas = torch.zeros(len(caps), max(lens), self.fc.out_features),torch.zeros(len(caps), max(lens), feats.shape[1])
        for t in range(max(lens)):
            n = sum(l > t for l in lens)
            preds[:n,t],alphas[:n,t],h,c = self.step(embs[:n,t], feats[:n], h[:n], c[:n])
        return [pack_padded_sequence(o, lens, batch_first=True).data for o in (preds, caps[:,1:])] + [alphas]

    @torch.no_grad()
    def beam_search(self, feats, k, max_len=30):
        "Words and score of the best caption of one picture (1,L,D); hypotheses that end leave the beam"
        feats = feats.expand(k, *feats.shape[1:]).contiguous()
        (h,c),scores,seqs,done = self.start(feats),torch.zeros(k, 1),torch.full((k, 1), Vocab.bos_idx),[]
        for t in range(max_len):
            logits,_,h,c = self.step(self.embedding(seqs[:,-1]), feats, h, c)
            logp = F.log_softmax(logits, 1)
            if t == 0: logp[:,Vocab.eos_idx] = -torch.inf   # a caption has a word at least
            total = scores + logp
            scores,best = (total[0] if t == 0 else total.flatten()).topk(k)
            prev,word = best//logits.shape[1],best%logits.shape[1]
            seqs = torch.cat([seqs[prev], word.unsqueeze(1)], 1)
            go_on = [i for i,w in enumerate(word.tolist()) if w != Vocab.eos_idx]
            done += [(seqs[i].tolist()[1:], scores[i].item()) for i in range(len(word)) if i not in go_on]
            k = len(go_on)
            if k == 0: break
            seqs,scores,prev = seqs[go_on],scores[go_on].unsqueeze(1),prev[go_on]
            h,c,feats = h[prev],c[prev],feats[prev]
        done += [(s.tolist()[1:], p.item()) for s,p in zip(seqs, scores)] if k else []
        return max(done, key=lambda o: o[1])

class TextbookEncoder(nn.Module):
    "A grid of 14 x 14, in the usual memory layout"
    def __init__(self, arch, weights):
        super().__init__()
        self.body,self.pool = models.get_model(arch, weights=weights).features,nn.AdaptiveAvgPool2d(14)
    def forward(self, imgs): return self.pool(self.body(imgs)).flatten(2).transpose(1, 2)

load_picture = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
