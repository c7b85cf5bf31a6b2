# frozen_string_literal: true

# Streams a SQLite database in WAL mode to S3, Google Cloud Storage, Azure or a directory, and restores it from there.
#
#   require "walrust"
#   Walrust.load                                   # once per process, before the program opens its databases
#   db = SQLite3::Database.new("app.db")
#   db.execute("SELECT walrust_watch(?)", ["s3://bucket/app"])   # or name it in walrust.toml, or in WALRUST_REPLICA
module Walrust
  VERSION = File.read(File.expand_path("walrust/VERSION", __dir__)).strip.freeze

  # The extension's file, as +load_extension+ takes it, and Rails 8.1's +extensions:+ in database.yml.
  def self.to_path
    File.expand_path("walrust/walrust.so", __dir__)
  end

  # Loads walrust, for the life of the process: every connection that is opened from now on has it. Without +db+ through a database in
  # memory. Raises SQLite3::Exception where this SQLite takes no extension.
  def self.load(db = nil)
    require "sqlite3"
    mine = db.nil?
    db ||= SQLite3::Database.new(":memory:")
    db.enable_load_extension(true)
    begin
      db.load_extension(to_path)
    ensure
      db.enable_load_extension(false)
      db.close if mine
    end
    nil
  end
end

require "walrust/railtie" if defined?(Rails::Railtie)
