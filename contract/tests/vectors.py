#!/usr/bin/env python3
"""Makes the examples of docs/twin-contract.md with an implementation of its own: Python and the package `cryptography`."""
import hmac,hashlib,base64,json,struct
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey,X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import *

H=lambda k,m:hmac.new(k,m,hashlib.sha256).digest()
def raw(pub): return pub.public_bytes(Encoding.Raw,PublicFormat.Raw)
def lx(suite,salt,label,ikm): return H(salt or b'\0'*32,b'HPKE-v1'+suite+label+ikm)
def le(suite,prk,label,info,L):
    t=b'';o=b'';i=1;info=struct.pack('>H',L)+b'HPKE-v1'+suite+label+info
    while len(o)<L: t=H(prk,t+info+bytes([i]));o+=t;i+=1
    return o[:L]
def seal(pub,info,pt,skE):
    K=b'KEM'+struct.pack('>H',0x20); S=b'HPKE'+struct.pack('>HHH',0x20,1,3)
    enc=raw(skE.public_key()); dh=skE.exchange(X25519PublicKey.from_public_bytes(pub))
    prk=lx(K,b'',b'eae_prk',dh); shared=le(K,prk,b'shared_secret',enc+pub,32)
    ctx=b'\0'+lx(S,b'',b'psk_id_hash',b'')+lx(S,b'',b'info_hash',info)
    sec=lx(S,shared,b'secret',b'')
    key=le(S,sec,b'key',ctx,32); nonce=le(S,sec,b'base_nonce',ctx,12)
    return enc+ChaCha20Poly1305(key).encrypt(nonce,pt,b'')
b64=lambda b:base64.b64encode(b).decode()
priv=X25519PrivateKey.from_private_bytes(bytes(range(1,33))); pub=raw(priv.public_key())
new=base64.b64decode("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAIoTOzOFgY="); old=b'\x07'*32
rot="0198f3c2-7d1e-7aaa-9a51-0a1b2c3d4e5f"; ident="pump-7"
info=f"twinkey/seal/v1\n{ident}\nkeyRenewal\nsecondary\n{rot}"
sealed=b64(seal(pub,info.encode(),new,X25519PrivateKey.from_private_bytes(bytes(range(101,133)))))
fp=lambda k:H(k,b"twinkey/fingerprint/v1").hex()[:32]
def auth(key,rot,p,s): return b64(H(key,"\n".join(["twinkey/offer/v1",ident,"keyRenewal",rot,p,s]).encode()))
print("sealed",sealed); print("info",json.dumps(info))
print("auth-sealed",auth(old,rot,"-","sealed "+sealed))
rot2="0198f3c2-8a00-7c4e-8d21-6f5e4d3c2b1a"
print("auth-both",auth(old,rot2,"key "+b64(new),"key "+b64(old)))
print("old fp",fp(old),"new fp",fp(new))
def rep(nonce=None):
    f=[ident,"keyRenewal","1","0.1.0",b64(pub),"42","secondary",rot,"committed","-","-","-",fp(old),"2026-11-20T10:00:00Z",fp(new),"2026-11-20T10:04:12Z"]
    head=["twinkey/proof/v1"] if nonce is None else ["twinkey/fresh-proof/v1",nonce]
    return b64(H(new,"\n".join(head+f).encode()))
print("proof",rep()); print("fresh",rep("5f1d0c3b9a7e24665f1d0c3b9a7e2466"))
