//! A disk that may lose power: what is durable, and what a power cut may or may not have kept.
//!
//! - Data that was not synced is kept, lost, zeros of the right length, cut off at a sector, or kept sector by sector (512
//!   bytes) or page by page (4 KiB).
//! - A name that was made, removed or replaced is kept or lost, each by itself, in any order, until its directory is synced.
//!   That syncing a file syncs its name as well, as ext4 does, is not relied on.
//! - A rename within a directory happens or not. One between directories never loses the file: the old name goes only once
//!   the new one is there; both may be.
//! - Modes, times and owners are not looked at.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::log::Call;
use tokenmill_tests::mutate::Mutator;

type Names = BTreeMap<OsString, usize>;

/// Files by their paths below the place.
pub type Tree = BTreeMap<PathBuf, Leaf>;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Leaf {
    /// A file: which one, and what is in it.
    File(usize, Rc<Vec<u8>>),
    /// A directory: which one.
    Directory(usize),
    /// A symbolic link.
    Link(PathBuf),
}

#[derive(Debug, Clone)]
enum Node {
    File(File),
    Directory(Directory),
    Link(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Rc<Vec<u8>>,
    current: Rc<Vec<u8>>,
    dirty: bool,
    /// Whether it is a log that grows in place.
    appends: bool,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    durable: Names,
    current: Names,
    waiting: Vec<Change>,
    /// The files below it when it got the name it has.
    published: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone)]
struct Change {
    number: u64,
    add: Option<(OsString, usize)>,
    remove: Option<OsString>,
    /// The change in another directory without which this cannot be.
    after: Option<u64>,
}

impl Change {
    fn apply(&self, names: &mut Names) {
        if let Some(name) = &self.remove {
            names.remove(name);
        }
        if let Some((name, node)) = &self.add {
            names.insert(name.clone(), *node);
        }
    }
}

/// The disk.
#[derive(Debug, Clone)]
pub struct Disk {
    base: PathBuf,
    nodes: Vec<Node>,
    inodes: HashMap<u64, usize>,
    changes: u64,
    durable_changes: BTreeSet<u64>,
}

const ROOT: usize = 0;

impl Disk {
    /// What is below `base` now, all of it durable.
    pub fn of(base: &Path) -> Self {
        let mut disk = Self {
            base: base.to_owned(),
            nodes: Vec::new(),
            inodes: HashMap::new(),
            changes: 0,
            durable_changes: BTreeSet::new(),
        };
        disk.read(base);
        disk
    }

    fn read(&mut self, path: &Path) -> usize {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        let node = self.nodes.len();
        self.inodes.insert(metadata.ino(), node);
        if metadata.is_dir() {
            self.nodes.push(Node::Directory(Directory::default()));
            let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            let names: Names = entries.map(|entry| (entry.file_name(), self.read(&entry.path()))).collect();
            let directory = self.directory(node);
            (directory.durable, directory.current) = (names.clone(), names);
        } else if metadata.is_symlink() {
            self.nodes.push(Node::Link(std::fs::read_link(path).unwrap()));
        } else {
            let content = Rc::new(std::fs::read(path).unwrap());
            let file = File { durable: Rc::clone(&content), current: content, ..File::default() };
            self.nodes.push(Node::File(file));
        }
        node
    }

    fn directory(&mut self, node: usize) -> &mut Directory {
        match &mut self.nodes[node] {
            Node::Directory(directory) => directory,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn file(&mut self, inode: u64) -> &mut File {
        match &mut self.nodes[self.inodes[&inode]] {
            Node::File(file) => file,
            other => panic!("{other:?} is no file"),
        }
    }

    /// The directory that holds `path`, and its name there.
    fn parent(&self, path: &Path) -> (usize, OsString) {
        let below = path.strip_prefix(&self.base).unwrap_or_else(|_| panic!("{} is not below", path.display()));
        let mut node = ROOT;
        for name in below.parent().expect("not the place itself") {
            node = match &self.nodes[node] {
                Node::Directory(directory) => directory.current[name],
                other => panic!("{other:?} is no directory"),
            };
        }
        (node, below.file_name().expect("a name").to_owned())
    }

    fn change(&mut self, directory: usize, change: Change) -> u64 {
        self.changes += 1;
        let change = Change { number: self.changes, ..change };
        let directory = self.directory(directory);
        change.apply(&mut directory.current);
        directory.waiting.push(change);
        self.changes
    }

    fn add(&mut self, path: &Path, inode: u64, node: Node) {
        let (directory, name) = self.parent(path);
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.inodes.insert(inode, node);
        self.change(directory, Change { number: 0, add: Some((name, node)), remove: None, after: None });
    }

    /// Takes note of a call.
    pub fn apply(&mut self, call: &Call) {
        match call {
            Call::Open { inode, path, truncated, appends } => {
                let (directory, name) = self.parent(path);
                if !self.directory(directory).current.contains_key(&name) {
                    self.add(path, *inode, Node::File(File::default()));
                }
                let file = self.file(*inode);
                file.appends |= appends;
                if *truncated && !file.current.is_empty() {
                    file.current = Rc::default();
                    file.dirty = true;
                }
            }
            Call::Write { inode, offset, bytes } => {
                let file = self.file(*inode);
                let content = Rc::make_mut(&mut file.current);
                content.resize(content.len().max(offset + bytes.len()), 0);
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
                file.dirty = true;
            }
            Call::Sync { inode, .. } => self.sync(self.inodes[inode]),
            Call::Mkdir { inode, path } => self.add(path, *inode, Node::Directory(Directory::default())),
            Call::Link { inode, path, target } => self.add(path, *inode, Node::Link(target.clone())),
            Call::Remove { path } => {
                let (directory, name) = self.parent(path);
                self.change(directory, Change { number: 0, add: None, remove: Some(name), after: None });
            }
            Call::Rename { from, to } => self.rename(from, to),
            Call::HardLink { from, to } => {
                let ((old, old_name), (new, new_name)) = (self.parent(from), self.parent(to));
                let node = self.directory(old).current[&old_name];
                self.change(new, Change { number: 0, add: Some((new_name, node)), remove: None, after: None });
            }
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let ((old, old_name), (new, new_name)) = (self.parent(from), self.parent(to));
        let node = self.directory(old).current[&old_name];
        let mut below = Tree::new();
        self.collect(
            node,
            Path::new(""),
            &|directory| directory.current.clone(),
            &mut |file| Rc::clone(&file.current),
            &mut below,
        );
        if let Node::Directory(directory) = &mut self.nodes[node] {
            directory.published = below.into_keys().collect();
        }
        let add = Some((new_name, node));
        if old == new {
            self.change(old, Change { number: 0, add, remove: Some(old_name), after: None });
        } else {
            let after = self.change(new, Change { number: 0, add, remove: None, after: None });
            self.change(old, Change { number: 0, add: None, remove: Some(old_name), after: Some(after) });
        }
    }

    fn sync(&mut self, node: usize) {
        match &mut self.nodes[node] {
            Node::File(file) => {
                file.durable = Rc::clone(&file.current);
                file.dirty = false;
            }
            Node::Directory(directory) => {
                for change in std::mem::take(&mut directory.waiting) {
                    if change.after.is_some_and(|after| !self.durable_changes.contains(&after)) {
                        directory.waiting.push(change);
                        continue;
                    }
                    change.apply(&mut directory.durable);
                    self.durable_changes.insert(change.number);
                }
            }
            Node::Link(_) => {}
        }
    }

    /// What programs see while there is power.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        self.collect(
            ROOT,
            Path::new(""),
            &|names| names.current.clone(),
            &mut |file| Rc::clone(&file.current),
            &mut tree,
        );
        tree
    }

    /// Files that are there to stay: under names of their own, no logs, and not empty as locks are.
    pub fn published(&self) -> Vec<PathBuf> {
        let lasts = |(path, leaf): (PathBuf, Leaf)| match leaf {
            Leaf::File(node, content) => match &self.nodes[node] {
                Node::File(file) if !file.appends && !content.is_empty() && is_trusted(&path) => Some(path),
                _ => None,
            },
            _ => None,
        };
        self.tree().into_iter().filter_map(lasts).collect()
    }

    /// Whether `path`, as a program named it, is a directory with files that are there to stay, in it or below it; `None` if
    /// it is a file.
    pub fn holds_published(&self, path: &Path) -> Option<bool> {
        let path = path.strip_prefix(&self.base).unwrap_or(path);
        let is_directory = matches!(self.tree().get(path), Some(Leaf::Directory(_)));
        is_directory.then(|| self.published().iter().any(|file| file.starts_with(path)))
    }

    /// How many choices a power cut has now, at most.
    pub fn ways(&self) -> u64 {
        let of = |node: &Node| match node {
            Node::File(file) if file.dirty => FATES,
            Node::Directory(directory) => 1 << directory.waiting.len().min(32),
            _ => 1,
        };
        self.nodes.iter().fold(1, |ways: u64, node| ways.saturating_mul(of(node)))
    }

    /// What is there after a power cut now. `choose(n)` decides, with a number below `n`, each thing that may be so or so.
    pub fn after_power_cut(&self, choose: &mut dyn FnMut(u64) -> u64) -> Tree {
        let directories = || {
            self.nodes.iter().filter_map(|node| match node {
                Node::Directory(directory) => Some(directory),
                _ => None,
            })
        };
        let mut kept = self.durable_changes.clone();
        kept.extend(directories().flat_map(|of| &of.waiting).filter(|_| choose(2) == 1).map(|change| change.number));
        let names = |directory: &Directory| {
            let mut names = directory.durable.clone();
            let possible = |change: &&Change| {
                kept.contains(&change.number) && change.after.is_none_or(|after| kept.contains(&after))
            };
            directory.waiting.iter().filter(possible).for_each(|change| change.apply(&mut names));
            names
        };
        let mut tree = Tree::new();
        self.collect(ROOT, Path::new(""), &names, &mut |file| file.after_power_cut(choose), &mut tree);
        tree
    }

    fn collect(
        &self,
        node: usize,
        path: &Path,
        names: &dyn Fn(&Directory) -> Names,
        content: &mut dyn FnMut(&File) -> Rc<Vec<u8>>,
        tree: &mut Tree,
    ) {
        let leaf = match &self.nodes[node] {
            Node::File(file) => Leaf::File(node, content(file)),
            Node::Link(target) => Leaf::Link(target.clone()),
            Node::Directory(directory) => {
                for (name, below) in names(directory) {
                    self.collect(below, &path.join(name), names, content, tree);
                }
                Leaf::Directory(node)
            }
        };
        tree.insert(path.to_owned(), leaf);
    }

    /// What a reader of `tree` would take for whole and is not, going by what this disk, the last, has in the end.
    pub fn half_visible(&self, tree: &Tree) -> Option<String> {
        tree.iter().filter(|(path, _)| is_trusted(path)).find_map(|(path, leaf)| match leaf {
            Leaf::File(node, content) => match &self.nodes[*node] {
                Node::File(file) if !file.appends && file.current != *content => {
                    Some(format!("{} is not whole", path.display()))
                }
                _ => None,
            },
            Leaf::Directory(node) => match &self.nodes[*node] {
                Node::Directory(directory) => {
                    let missing = directory.published.iter().find(|name| !tree.contains_key(&path.join(name)));
                    missing.map(|name| format!("{} lacks {}", path.display(), name.display()))
                }
                _ => None,
            },
            Leaf::Link(_) => None,
        })
    }
}

/// Whether a name says that what has it is whole.
pub fn is_trusted(path: &Path) -> bool {
    !path.iter().any(|name| name.to_string_lossy().starts_with(".tmp-"))
}

/// What may become of a file's data.
const FATES: u64 = 8;
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

impl File {
    fn after_power_cut(&self, choose: &mut dyn FnMut(u64) -> u64) -> Rc<Vec<u8>> {
        if !self.dirty {
            return Rc::clone(&self.current);
        }
        let units = |bytes, seed| {
            let mut random = Mutator::new(seed);
            self.piecewise(bytes, &mut |_| random.below(2) == 1)
        };
        match choose(FATES) {
            0 => Rc::clone(&self.durable),
            1 => Rc::clone(&self.current),
            2 => self.piecewise(SECTOR_BYTES, &mut |_| false),
            3 => {
                let mut half = (*self.current).clone();
                half.truncate(half.len() / 2 / SECTOR_BYTES * SECTOR_BYTES);
                Rc::new(half)
            }
            fate @ (4 | 5) => units(SECTOR_BYTES, fate),
            fate => units(PAGE_BYTES, fate),
        }
    }

    /// The length is kept, and of the content what `keeps` says; the rest is as it was, or zero.
    fn piecewise(&self, bytes: usize, keeps: &mut dyn FnMut(usize) -> bool) -> Rc<Vec<u8>> {
        let mut content = (*self.durable).clone();
        content.resize(self.current.len(), 0);
        for (number, (to, from)) in content.chunks_mut(bytes).zip(self.current.chunks(bytes)).enumerate() {
            if keeps(number) {
                to.copy_from_slice(from);
            }
        }
        Rc::new(content)
    }
}
