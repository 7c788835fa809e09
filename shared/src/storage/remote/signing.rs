//! Signatures of requests, by ring as all cryptography here: `object_store`'s own use of it asks for a feature of ring that
//! would have the default build made anew.

use object_store::client::{CryptoProvider, DigestAlgorithm, DigestContext, HmacContext, Signer, SigningAlgorithm};
use object_store::{Error, Result};
use ring::{digest, hmac};

/// SHA-256 of ring.
#[derive(Debug)]
pub(super) struct Ring;

fn only_sha256(algorithm: DigestAlgorithm) -> Result<()> {
    match algorithm {
        DigestAlgorithm::Sha256 => Ok(()),
        _ => Err(unsupported()),
    }
}

fn unsupported() -> Error {
    Error::NotSupported { source: "requests are signed by HMAC with SHA-256 only".into() }
}

impl CryptoProvider for Ring {
    fn digest(&self, algorithm: DigestAlgorithm) -> Result<Box<dyn DigestContext>> {
        only_sha256(algorithm)?;
        Ok(Box::new(Digest { context: digest::Context::new(&digest::SHA256), done: None }))
    }

    fn hmac(&self, algorithm: DigestAlgorithm, secret: &[u8]) -> Result<Box<dyn HmacContext>> {
        only_sha256(algorithm)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Ok(Box::new(Hmac { context: hmac::Context::with_key(&key), done: None }))
    }

    fn sign(&self, _algorithm: SigningAlgorithm, _pem: &[u8]) -> Result<Box<dyn Signer>> {
        Err(unsupported())
    }
}

struct Digest {
    context: digest::Context,
    done: Option<digest::Digest>,
}

impl DigestContext for Digest {
    fn update(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        let done: &digest::Digest = self.done.get_or_insert_with(|| self.context.clone().finish());
        Ok(done.as_ref())
    }
}

struct Hmac {
    context: hmac::Context,
    done: Option<hmac::Tag>,
}

impl HmacContext for Hmac {
    fn update(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    fn finish(&mut self) -> Result<&[u8]> {
        let done: &hmac::Tag = self.done.get_or_insert_with(|| self.context.clone().sign());
        Ok(done.as_ref())
    }
}
