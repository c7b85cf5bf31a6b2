//! A replica read in place: SQLite opens, or attaches, a replica's URL, and reads its pages out of the replica's files as they are
//! wanted, at any point in time.
//!
//! | file | what |
//! |---|---|
//! | `name` | which names are replicas, and of which point |
//! | `replica` | what processes' connections share of one replica: its files as far as they are known, the newest state |
//! | `view` | a state: from a listing and a point to the files that make it, and their page indexes |
//! | `ahead` | which pages SQLite will want after the one that it reads; pure |
//! | `fetch` | which blocks of which files to fetch for them; pure |
//! | `cache` | what was fetched, in memory |
//! | `disk` | what was fetched, on local disk |
//! | `known` | files that were read |
//! | `image` | one connection's open file |
//! | `past` | the same of a database that is watched here: what was not changed since comes from its own file |
//! | `changes` | what was changed between two points, by table |
//! | `btree` | which page belongs to which table, and which rows lie in it; pure |
//! | `cover` | which files tell all that was changed between two TXIDs; pure |
//! | `nearby` | what is asked of who knows the databases that are watched here |
//! | `open` | the door: opens a name for SQLite |
//! | `limits` | numbers |
//! | `runtime` | the thread that all requests are made on |
//!
//! Rules
//! * I-READ-1 All that SQLite reads in one transaction is of one TXID. One that was opened without a point moves on to the newest
//!   between transactions; one that was opened with a point stays there.
//! * I-READ-2 Nothing is fetched while nobody reads, no more than [`limits::PARALLEL`] requests are made at once for one read, and whether
//!   there is something newer is asked once a second at most ([`limits::FRESH_FOR`]), by the next TXID's name.
//! * I-READ-3 A file that is gone (merged, out of retention) or damaged is gone around if other files make the same TXID. A TXID that
//!   nothing makes any more is an error, never another TXID.
//! * I-READ-4 The replica is read only: nothing here puts or deletes.
//! * I-READ-5 No thread of the shipper's has a part in it: reading works while shipping does not.
//!
//! A crash leaves nothing behind. Refused: one request a page (a scan of 8 MB would be 2,000); the whole page index in memory
//! for each connection (it is shared, and two or three bytes a page); a listing at each transaction.

mod ahead;
mod btree;
mod cache;
mod changes;
mod cover;
mod disk;
mod fetch;
mod image;
mod known;
mod limits;
mod name;
mod nearby;
mod open;
mod past;
mod replica;
mod runtime;
mod view;

pub use changes::{Change, RowChanges, changes};
pub use disk::CacheAt;
pub use name::{Name, name_of, past_name_of};
pub use nearby::{Changed, Changes, Nearby, Now, State, Vicinity};
pub use open::{Replicas, point_at, point_of, schema_cookie, txid_at};
