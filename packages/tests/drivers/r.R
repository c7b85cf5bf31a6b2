a <- commandArgs(TRUE); so <- a[1]; d <- a[2]; how <- a[3]
library(DBI); library(RSQLite)
db <- dbConnect(SQLite(), file.path(d, "app.db"), loadable.extensions = TRUE)
run <- function(sql, ...) { p <- list(...); if (length(p)) dbGetQuery(db, sql, params = p) else dbGetQuery(db, sql) }
url <- file.path(d, "replica")
invisible(run("SELECT load_extension(?)", so))
invisible(run("SELECT walrust_watch(?)", url))
invisible(dbExecute(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"))
for (i in 1:100) dbExecute(db, "INSERT INTO t(v) VALUES(?)", params = list(paste("row", i)))
# R has REAL where others have integers: a whole one is a TXID.
txid <- as.numeric(run("SELECT walrust_sync() AS t")$t)
invisible(run("SELECT walrust_restore(?, ?, ?)", url, file.path(d, "copy.db"), txid))
invisible(dbExecute(db, "INSERT INTO t(v) VALUES('last')"))
if (how == "close") { dbDisconnect(db) } else if (how == "throw") { stop("nobody catches this") } else { quit(save = "no", status = 0) }
