"""TEMPORARY stand-ins until the ops are merged."""
from typing import NamedTuple, Any
import torch
class LogProbs(NamedTuple):
    logp: Any=None
    lse: Any=None
    argmax: Any=None
    mean_logit: Any=None
    mean_logp: Any=None
    mean_logp2: Any=None
def logits_logprob(z, t, *, softcap=None, ignore_index=-100, want=("logp",)):
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    lp = z.log_softmax(-1).gather(-1, t[...,None])[...,0]
    return LogProbs(logp=lp, argmax=z.argmax(-1))
def linear_logprob(h, w, t, bias=None, *, softcap=None, ignore_index=-100, want=("logp",)):
    z = h@w.T
    if bias is not None: z=z+bias
    return logits_logprob(z,t)
def segment_nll(logp, seg, n):
    s = torch.zeros(n,dtype=logp.dtype).index_add(0, seg, -logp)
    return s, torch.bincount(seg, minlength=n)
def linear_kl(h,w,rh,rw,*,bias=None,ref_bias=None,mask=None,direction="forward"):
    a=(h@w.T).log_softmax(-1); b=(rh@rw.T).log_softmax(-1).detach()
    if direction=="reverse": a,b=b,a
    return (b.exp()*(b-a)).sum(-1)
def linear_undial(h,w,rh,rw,t,*,beta=10.0,ignore_index=-100):
    z=h@w.T; r=(rh@rw.T).detach(); r=r-beta*torch.nn.functional.one_hot(t,r.shape[-1])
    return -(r.softmax(-1)*z.log_softmax(-1)).sum(-1)
def linear_ceu(h,w,t,bias=None,*,ignore_index=-100):
    z=h@w.T; r=z.detach().scatter(1,t[:,None],float("-inf"))
    return -(r.softmax(-1)*z.log_softmax(-1)).sum(-1)
def gnb_sample(z,*,seed,row_offset=0,temperature=1.0,mask=None): ...
def linear_gnb_sample(h,w,bias=None,*,seed,row_offset=0,temperature=1.0,mask=None):
    z=h@w.T
    g=torch.Generator().manual_seed(seed%(2**62))
    y=torch.multinomial(z.detach().softmax(-1),1,generator=g)[:,0]
    class S(NamedTuple):
        tokens:Any; logp:Any
    return S(y, z.log_softmax(-1).gather(1,y[:,None])[:,0])
