//! Uploads that killed runs left unfinished: they are seen in no listing of objects, and are paid for.

use std::path::Path;
use std::time::Duration;

use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::signer::{SignedUrlOptions, Signer};
use serde::Deserialize;

use super::{Place, http, wait};
use crate::Result;

/// How long the address of a request is good for.
const GOOD_FOR: Duration = Duration::from_secs(300);

/// A page of a store's answer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Page {
    upload: Vec<Unfinished>,
    is_truncated: bool,
    next_key_marker: String,
    next_upload_id_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unfinished {
    key: String,
    upload_id: String,
}

/// Gives up every unfinished upload below `root`, whoever began it. What cannot be done is said and is no error: the store
/// can be told to do it by itself.
pub(crate) fn remove_unfinished_uploads(root: &Path) -> Result<()> {
    let Place { store, key } = Place::of(root)?;
    let removed = wait(async move {
        for Unfinished { key, upload_id } in list(&store, &key).await? {
            store.abort_multipart(&Key::parse(key)?, &upload_id).await?;
        }
        Ok(())
    });
    if let Err(error) = removed {
        eprintln!(
            "unfinished uploads below {} may be left ({error}); let the bucket's lifecycle remove them (AbortIncompleteMultipartUpload)",
            root.display()
        );
    }
    Ok(())
}

/// `object_store` knows no such request, so it is made here and signed there.
async fn list(store: &AmazonS3, below: &Key) -> object_store::Result<Vec<Unfinished>> {
    let mut found = Vec::new();
    let mut page = Page::default();
    loop {
        let query = [
            ("uploads", String::new()),
            ("prefix", format!("{below}/")),
            ("key-marker", page.next_key_marker),
            ("upload-id-marker", page.next_upload_id_marker),
        ];
        let named = query.into_iter().filter(|(name, value)| *name == "uploads" || !value.is_empty());
        let query = named.map(|(name, value)| (name.to_owned(), value));
        let options = SignedUrlOptions::new().with_query(query);
        let url = store.signed_url_opts(ureq::http::Method::GET, &Key::default(), GOOD_FOR, &options).await?;
        page = http::get(url.to_string())
            .await
            .and_then(|answer| Ok(quick_xml::de::from_reader(answer.as_ref())?))
            .map_err(|source| object_store::Error::Generic { store: "S3", source })?;
        found.append(&mut page.upload);
        if !page.is_truncated || page.next_key_marker.is_empty() {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer in the documentation of `ListMultipartUploads`, shortened.
    #[test]
    fn the_answer_of_a_store_is_read() {
        let answer = r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
              <Bucket>bucket</Bucket><KeyMarker></KeyMarker><UploadIdMarker></UploadIdMarker>
              <NextKeyMarker>my-movie.m2ts</NextKeyMarker><NextUploadIdMarker>YW55IGlkZWEgd2h5</NextUploadIdMarker>
              <MaxUploads>3</MaxUploads><IsTruncated>true</IsTruncated>
              <Upload><Key>a/b&amp;c</Key><UploadId>XMgbGlrZSBlbHZpbmcncyBub3QgaGF2</UploadId>
                <Initiator><ID>arn</ID></Initiator><StorageClass>STANDARD</StorageClass></Upload>
              <Upload><Key>my-movie.m2ts</Key><UploadId>VXBsb2FkIElEIGZvciBlbHZpbmcncyBt</UploadId></Upload>
            </ListMultipartUploadsResult>"#;
        let page: Page = quick_xml::de::from_str(answer).unwrap();
        let keys: Vec<_> = page.upload.iter().map(|upload| upload.key.as_str()).collect();
        assert_eq!(keys, ["a/b&c", "my-movie.m2ts"]);
        assert_eq!(page.upload[0].upload_id, "XMgbGlrZSBlbHZpbmcncyBub3QgaGF2");
        assert!(page.is_truncated && page.next_upload_id_marker == "YW55IGlkZWEgd2h5");
    }
}
